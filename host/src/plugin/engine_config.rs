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
    // A plugin is instantiated for the life of the workload, so an image to share its memory with saves nothing; and the file
    // in memory that it would be (memfd_create(2)) may be larger than our limit of file sizes.
    config.memory_init_cow(false);
    // It is for debuggers: traps and their backtraces do without, and reading it takes longer than the rest of the loading.
    config.native_unwind_info(false);
    config.cranelift_opt_level(wasmtime::OptLevel::Speed);
    config
}
