"""Frames, datasets, structures and padded batches: numpy arrays on the host."""

from moe_md.data.batching import Batch, Prepared, batches, collate, packing_plan, prepare
from moe_md.data.dataset import (
    PACKAGED,
    Dataset,
    dataset_from_frames,
    digest,
    folds_by_group,
    force_rms,
    isolated_atom_energies,
    load_dataset,
    ptco_fm,
    ptco_fm_test,
    ptco_pbe,
    ptco_pbe_test,
    reference_energies,
    require_labels,
    split_by_group,
    summary,
)
from moe_md.data.extxyz import read_images
from moe_md.data.labels import count_labels, label_remarks, refuse_zeros, warn_of_labels, without_outliers
from moe_md.data.overview import average_neighbors, duplicates, overview, overview_table
from moe_md.data.reading import Frame, common_level, frame_from_atoms, frame_to_atoms, read_frames
from moe_md.data.references import (
    Reference,
    describe_reference,
    find_references,
    read_references,
    reference_from_atoms,
)
from moe_md.data.structure_file import read_structure
from moe_md.data.structures import co_covered_slab, fcc_slab, fcc_supercell, slab_with_adsorbate
from moe_md.renamed import missing_attribute

__all__ = [
    "PACKAGED",
    "Batch",
    "Dataset",
    "Frame",
    "Prepared",
    "Reference",
    "average_neighbors",
    "batches",
    "co_covered_slab",
    "collate",
    "common_level",
    "count_labels",
    "dataset_from_frames",
    "describe_reference",
    "digest",
    "duplicates",
    "fcc_slab",
    "fcc_supercell",
    "find_references",
    "folds_by_group",
    "force_rms",
    "frame_from_atoms",
    "frame_to_atoms",
    "isolated_atom_energies",
    "label_remarks",
    "load_dataset",
    "overview",
    "overview_table",
    "packing_plan",
    "prepare",
    "ptco_fm",
    "ptco_fm_test",
    "ptco_pbe",
    "ptco_pbe_test",
    "read_frames",
    "read_images",
    "read_references",
    "read_structure",
    "reference_energies",
    "reference_from_atoms",
    "refuse_zeros",
    "require_labels",
    "slab_with_adsorbate",
    "split_by_group",
    "summary",
    "warn_of_labels",
    "without_outliers",
]


def __getattr__(name: str):
    raise missing_attribute(__name__, name)
