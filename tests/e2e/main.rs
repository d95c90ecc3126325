//! End-to-end: the built executable against real programs.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod harness;

mod cli;
mod plugins;
mod policies;
