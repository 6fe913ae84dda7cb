//! VHD.

mod created;
mod hostile;
mod opened;
