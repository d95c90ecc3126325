//! How much memory an instance may have.

use wasmtime::ResourceLimiter;

/// Core instances of one component: wit-component makes three or four.
const INSTANCES: usize = 64;
/// Linear memories of one component.
const MEMORIES: usize = 8;
/// Tables of one component.
const TABLES: usize = 16;
/// Entries of one table; each takes a pointer. A plugin's functions that are called through pointers are a few hundred.
const TABLE_ENTRIES: usize = 100_000;

/// Counts an instance's linear memory, all of its memories together.
pub(super) struct Limits {
    memory: usize,
    used: usize,
}

impl Limits {
    pub(super) fn new(memory: usize) -> Self {
        Self { memory, used: 0 }
    }

    /// Bytes of linear memory in use.
    pub(super) fn used(&self) -> usize {
        self.used
    }
}

/// An instance wanted more memory than it may have. Ends the call, since what a plugin does without the memory that it
/// asked for (mostly: an `unreachable`) would hide the reason.
#[derive(Debug, thiserror::Error)]
pub(super) enum OverLimit {
    #[error("wants {wanted} bytes of memory, its limit is {limit}")]
    Memory { wanted: usize, limit: usize },
    #[error("wants a table of {0} entries, the limit is {TABLE_ENTRIES}")]
    Table(usize),
}

impl ResourceLimiter for Limits {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let wanted = self.used.saturating_add(desired.saturating_sub(current));
        if wanted > self.memory {
            return Err(OverLimit::Memory { wanted, limit: self.memory }.into());
        }
        self.used = wanted;
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        if desired > TABLE_ENTRIES {
            return Err(OverLimit::Table(desired).into());
        }
        Ok(true)
    }

    fn instances(&self) -> usize {
        INSTANCES
    }

    fn tables(&self) -> usize {
        TABLES
    }

    fn memories(&self) -> usize {
        MEMORIES
    }
}
