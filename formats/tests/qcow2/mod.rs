//! qcow2.

mod created;
mod hostile;
mod opened;
