"""Units are eV, Å and amu; the unit of time is Å sqrt(amu / eV), about 10.18 fs.

The constants are ASE's (CODATA 2014), converted to these units.
"""

import ase.units

fs = float(ase.units.fs)  # Å sqrt(amu / eV)
ps = 1000.0 * fs  # Å sqrt(amu / eV)
kB = float(ase.units.kB)  # eV / K
GPa = float(ase.units.GPa)  # eV / Å^3
