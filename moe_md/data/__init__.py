"""Frames, datasets and padded batches, on the host: numpy in, numpy out."""

from moe_md.data.batching import Batch, Prepared, batches, collate, packing_plan, prepare
from moe_md.data.crystals import fcc_slab, fcc_supercell, metal_frames, perfect_crystals, random_metal
from moe_md.data.dataset import (
    PACKAGED,
    Dataset,
    dataset_from_frames,
    digest,
    folds_by_group,
    force_rms,
    load_dataset,
    ptco_fm,
    ptco_fm_test,
    ptco_pbe,
    reference_energies,
    require_labels,
    split_by_group,
    summary,
)
from moe_md.data.extxyz import Frame, frame_from_atoms, frame_to_atoms, read_frames

__all__ = [
    "PACKAGED",
    "Batch",
    "Dataset",
    "Frame",
    "Prepared",
    "batches",
    "collate",
    "dataset_from_frames",
    "digest",
    "fcc_slab",
    "fcc_supercell",
    "folds_by_group",
    "force_rms",
    "frame_from_atoms",
    "frame_to_atoms",
    "load_dataset",
    "metal_frames",
    "packing_plan",
    "perfect_crystals",
    "prepare",
    "ptco_fm",
    "ptco_fm_test",
    "ptco_pbe",
    "random_metal",
    "read_frames",
    "reference_energies",
    "require_labels",
    "split_by_group",
    "summary",
]
