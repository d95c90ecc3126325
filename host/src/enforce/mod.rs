//! Verdict → outcome: what is allowed is carried out from the private copy, so that what was decided is what happens.
//!
//! May depend on `sys`, `intercept` and `event`. Never reads a caller's arguments.

pub mod exec;
pub mod network;
pub mod signals;
pub mod traced;
pub mod unheard;
pub mod waiting;
