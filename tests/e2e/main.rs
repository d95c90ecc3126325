//! End-to-end: the built executable against real programs.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod harness;

mod cli;
mod network;
mod network_races;
mod network_transparency;
