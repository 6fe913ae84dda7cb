//! Hyper-V virtual disks and their checkpoint chains.
