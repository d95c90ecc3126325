//! The fuzz targets, each for a moment: seeds that mean something, with bytes exchanged, and bytes that mean nothing. They pass
//! if nothing panics, hangs or crashes. `host/fuzz/` has the same for hours, guided by coverage.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../host/fuzz/bodies.rs"]
#[allow(unreachable_pub)]
mod bodies;

use std::time::{Duration, Instant};

use proptest::test_runner::{RngAlgorithm, TestRng};
use rand::{Rng, RngExt};

/// How long each target runs.
const MOMENT: Duration = Duration::from_secs(4);

fn run(target: fn(&[u8]), seeds: &[Vec<u8>]) {
    // The same bytes in every run: a failure can be looked at.
    let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let end = Instant::now() + MOMENT;
    let mut rounds = 0;
    while Instant::now() < end {
        let mut data = seeds[random.random_range(0..seeds.len())].clone();
        if random.random_bool(0.1) {
            data.resize(random.random_range(0..600), 0);
            random.fill_bytes(&mut data);
        }
        for _ in 0..random.random_range(0..8) {
            if !data.is_empty() {
                let at = random.random_range(0..data.len());
                data[at] = random.random();
            }
        }
        if random.random_bool(0.1) {
            data.truncate(random.random_range(0..data.len().max(1)));
        }
        target(&data);
        rounds += 1;
    }
    assert!(rounds > 500, "only {rounds} rounds");
}

#[test]
fn hostile_arguments_and_memory_are_decoded_without_a_panic() {
    let mut seeds = Vec::new();
    for number in 0..10 {
        // Descriptors and pointers for the arguments; addresses, a message's header and paths for the memory.
        let mut seed = vec![number, 1, 0, 0x40, 0, 0x80, 16, 0, 0x40, 0x80, 16, 0, 0, 0];
        seed.extend([2, 0, 1, 187, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        for word in [0_u16, 16, 64, 2, 96, 40, 0] {
            let mut bytes = u64::from(word).to_le_bytes();
            bytes[7] = if word >= 64 { 0xff } else { 0 };
            seed.extend(bytes);
        }
        seed.extend([1, 0]);
        seed.extend(b"/proc/self/exe\0\0");
        seed.extend([20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        seed.extend([0; 64]);
        seeds.push(seed);
    }
    run(bodies::call, &seeds);
}

#[test]
fn hostile_programs_are_decoded_without_a_panic() {
    let elf = std::fs::read("/bin/true").unwrap();
    run(bodies::program, &[elf[..1024].to_vec(), b"#!/bin/sh -e\n".to_vec(), b"#! /usr/bin/env  x y \n".to_vec()]);
}

#[test]
fn any_policy_is_read_or_explained_without_a_panic() {
    let mut seeds = vec![b"{\"allow_executables\": [\"/a\"]}".to_vec()];
    for policy in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../policies")).unwrap().flatten() {
        seeds.push(std::fs::read(policy.path()).unwrap());
    }
    run(bodies::policy, &seeds);
}
