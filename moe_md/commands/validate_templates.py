"""Text of the report of a validation, in Markdown with fields for `str.format`."""

HEAD = """\
# Validation of {checkpoint}

The expensive expert is `{experts[0]}`. The cheap expert is `{experts[1]}`; its domain is {domain}.
{references}

{summary}
"""
REFERENCES = "The reference crystals are {names}."
NO_REFERENCES = "There are no reference crystals."
REGION = {
    "near": (
        "all atoms within {distance:g} Å (the cheap expert's cutoff plus {region_margin:g} Å)\n"
        "of any species outside the cheap expert's domain"
    ),
    "top_layers": (
        "all species outside the cheap expert's domain and the {region_layers} uppermost layers\nof a slab"
    ),
}

ERRORS = """\
## Errors on labelled frames

The labels are those of {data}, split “{split}”: {frames} frames. Errors are root mean square errors, with
mean absolute errors in brackets, over all components of forces and stress. **The cheap expert is scored
in its domain only** ({domain}, as in training): on forces of atoms, energies and stresses of frames. In the
mixture the expensive expert owns {region}. The cheap expert owns all other atoms.
The mixture is scored only on frames in which both experts own atoms: {n_mixed} frames. The
expensive expert is also scored on these frames alone. A missing label is left out.

{frame_table}

Force errors by environment and by species, meV/Å. {environments}

{atom_table}
{picture}
### Effect of the expert boundary

{boundary}
"""
ENVIRONMENTS_PICTURE = """
![Force errors by environment](errors.png)
"""
ENVIRONMENTS = """\
Each frame is compared
with the reference crystal that is closest in composition. Surface atoms have fewer neighbours than their
species in this crystal, also at vacancies, steps and adatoms. Subsurface atoms have as many, at least one of
them a surface atom. All other atoms of these species are bulk, and all other species are adsorbate."""
NO_ENVIRONMENTS = """\
Without reference crystals surface and bulk
cannot be told apart, so environments are left out."""
NO_BOUNDARY = "No frame has atoms of both experts, so there is nothing to compare."
BOUNDARY_ERRORS = """\
The mixture beside the expensive expert, on the same atoms of the same {n_mixed} frames, meV/Å. The excess is
the error of the mixture minus that of the expensive expert. The change is the root mean square difference
between the forces of the two; it needs no labels.

{table}

![Force errors over distance to the expert boundary](boundary_distance.png)"""

CRYSTAL = """\
## The perfect crystal of {name}

{reference}. Each expert is evaluated at its own relaxed cell. Where these properties differ, an expert
boundary in the bulk causes stress and scatters phonons. Atoms relax in the strained cell; `validation.json`
also holds elastic constants without that relaxation.
{elastic}
{table}

Phonon frequencies of the two experts differ by {rms} % root mean square and by at most {largest} %. Their
energies at equilibrium differ by {energy} meV/atom.

![Equation of state]({equation_of_state})

![Phonons]({phonons})
"""
NOT_CUBIC = """\
Constants are given in the standard setting of the space group; those below 1 % of the largest are left out.
"""

SURFACES = """\
## Vacancies and surfaces of {name}

All structures are relaxed, each expert at its own relaxed cell. Surfaces are clean and unreconstructed, along
the most widely spaced lattice planes. The first spacing is the change of the distance between the two
uppermost layers.

{table}
"""
ADSORPTION = """
### CO on {name}(111)

One CO in each p(2×2) cell, with all atoms on the expensive expert and with the mixture. Where the cheap
expert owns the entire clean slab, the adsorption energy of the mixture includes the difference of the
experts' energies on the atoms that switch expert. Sites in order of energy: {expensive_order} for the
expensive expert, {mixed_order} for the mixture.

{table}

![Adsorption energies]({adsorption})
"""
ADSORPTION_COLUMNS = (
    "site",
    "energy, eV",
    "mixture",
    "difference, meV",
    "C–O and metal–C, Å",
    "mixture",
    "C–O stretch, cm⁻¹",
    "mixture",
    "atoms on the expensive expert",
    "stayed on the site",
)
NOT_CONVERGED = """
**{failed} of {total} relaxations did not converge.** They have `"converged": false` in `validation.json`.
"""

EXPERT_BOUNDARY = """\
## The expert boundary in a perfect crystal of {name}

Ghost forces are the forces that the boundary between the experts adds to those that atoms have where one
expert owns all of them. They should be zero, meV/Å:

{ghost_table}

Under the same strain the two experts' crystals have different stresses. Across a planar boundary the
in-plane components jump by this difference, and a difference of the normal component moves the atoms. A
spherical boundary is displaced by the difference in pressure. MPa, expensive minus cheap:

{jump_table}

Over all these strains and isotropic strains of up to {strain:g} %, the largest component is {worst:.4f} GPa
and the largest pressure {worst_pressure:.4f} GPa.

![Ghost force and stress jump]({expert_boundary})
"""

DYNAMICS = """\
## A run of the mixture beside a run of the expensive expert

{n_atoms} atoms: {structure}. In the mixture the expensive expert owns {n_expensive} of them:
{region}. Both runs start from one state, taken after {equilibration_steps} steps of Langevin dynamics at
{temperature_K:g} K under the expensive expert. They take {production_steps} steps of {timestep_fs:g} fs
({time_ps:g} ps) at constant energy, in float64.

{drift_table}

As an energy flux through the expert boundary, the drift of the mixture is ({flux:+.2e} ± {flux_stderr:.1e})
eV/ps/Å². The area of the boundary, {area:.0f} Å², is {area_source}.
{out_of_domain}
Error bars are standard errors over {blocks} blocks. The largest deviation is in units of the combined error
of a point. The last column is the median of this number for two equal curves with as many independent
points; it is not small because blocks are few. Both runs start from one state and stay similar for a while,
so a deviation below this value says little. A deviation far above it shows a difference. Atoms at the expert
boundary have a nearest neighbour on the other expert.

{curve_table}

![Both runs](dynamics.png)
"""
AREA_SOURCE = {
    "near": "estimated from the number of nearest-neighbour bonds across the boundary",
    "top_layers": "the cross-section of the cell",
}
OUT_OF_DOMAIN = """
In {fraction:.0%} of the frames of the mixture's run the cheap expert had an atom outside its domain. Where
that is for a species, a larger `region_margin` prevents it.
"""

FOOT = """\
## Method

Made by `moe-md validate` on {device} with jax {jax}; {seconds}, compilation included. Digest of the frames:
`{digest}`. All numbers are in `validation.json`. Labelled frames are computed in float32, everything else in
float64.
"""
