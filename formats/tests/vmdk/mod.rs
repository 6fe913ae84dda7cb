//! VMDK images.

mod escapes;
mod esx;
mod hostile;
mod opened;
mod refused;
