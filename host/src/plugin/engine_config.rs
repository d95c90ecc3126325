//! How plugins are compiled: the same here and where the built-in ones are compiled ahead of time, since wasmtime refuses
//! code that was compiled under another configuration.
//!
//! Depends on nothing but wasmtime: a build script may include this file.

/// The configuration of every engine.
pub fn config() -> wasmtime::Config {
    let mut config = wasmtime::Config::new();
    config.wasm_component_model(true);
    // Deadlines: compiled code compares a counter at every loop and function.
    config.epoch_interruption(true);
    // A plugin recurses on its own data at most; receiver threads have 2 MiB.
    config.max_wasm_stack(512 << 10);
    // The supervisor's threads block every signal, and a fault whose signal is blocked ends the process (signal(7)); code that
    // checks for itself what it may do needs no signals. It needs no reserved address space either, of which a container may
    // have little (`ulimit -v`).
    config.signals_based_traps(false).memory_reservation(0).memory_guard_size(0).memory_reservation_for_growth(1 << 20);
    config.cranelift_opt_level(wasmtime::OptLevel::Speed);
    config
}
