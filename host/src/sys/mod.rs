//! Raw system calls behind safe faces: the only unsafe code of the project.
//!
//! May depend on nothing else of the crate.

pub mod attributes;
pub mod credentials;
pub mod diag;
pub mod injection;
pub mod interruption;
pub mod mapping;
pub mod memory;
pub mod notify;
pub mod pidfd;
pub mod precompiled;
pub mod process;
pub mod seccomp;
pub mod socket;
pub mod wait;
