//! End-to-end: the built executable against real programs.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod harness;

mod audit;
mod cli;
mod container;
mod launch;
mod supervisor;
mod terminal;
