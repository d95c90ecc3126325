//! End-to-end: the built executable against real programs.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod harness;

mod audit;
mod bypass;
mod callers;
mod cli;
mod compatibility;
mod container;
mod ctl;
mod exec;
mod exec_races;
mod exhaustion;
mod guide;
mod held_facts;
mod launch;
mod network;
mod network_races;
mod network_transparency;
mod older_kernels;
mod plugins;
mod policies;
mod readme;
mod reload;
mod review_exec;
mod review_network;
mod review_today;
mod samples;
mod supervisor;
mod terminal;
mod users;
