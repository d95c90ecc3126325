//! The WebAssembly engine, and the clock that ends plugins which take too long.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use wasmtime::component::Component;

use super::cache::Cache;
use super::engine_config;
use crate::sys::precompiled;

/// The resolution of deadlines.
const TICK: Duration = Duration::from_millis(1);
/// How often the clock looks whether a plugin is running while none is. The first tick of a deadline may be this late.
const IDLE_TICK: Duration = Duration::from_millis(5);
/// After so many idle ticks in a row the clock stops until a plugin runs, so that an idle workload has an idle supervisor.
const IDLE_TICKS: u32 = 200;

/// What all plugins share: the compiler, its configuration and the clock. Clones are the same engine.
#[derive(Clone)]
pub struct Engine {
    wasm: wasmtime::Engine,
    ticker: Arc<Ticker>,
    /// Where paths lead that some plugin was configured with. A policy that is loaded later means by a path what the first
    /// one meant: the workload could have changed where it leads since.
    pub(super) paths: Arc<Mutex<HashMap<String, String>>>,
    pub(super) cache: Option<Arc<Cache>>,
    /// The code of the built-in plugin, once it is loaded.
    builtin: Arc<OnceLock<Component>>,
}

/// The engine cannot be set up on this machine.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up the webassembly engine: {0}")]
pub struct EngineError(String);

impl Engine {
    /// An engine whose clock stands still. Starts no thread.
    ///
    /// # Errors
    /// When wasmtime cannot generate code for this processor.
    pub fn new() -> Result<Self, EngineError> {
        let mut config = engine_config::config();
        // What is compiled here is compiled while somebody waits: a sixth less time for a hundredth more per decision. The
        // allocator that would halve it (`RegallocAlgorithm::SinglePass`) is not for security, says wasmtime.
        config.cranelift_opt_level(wasmtime::OptLevel::None);
        precompiled::in_place(&mut config);
        let wasm = wasmtime::Engine::new(&config).map_err(|e| EngineError(format!("{e:#}")))?;
        Ok(Self { wasm, ticker: Arc::default(), paths: Arc::default(), cache: None, builtin: Arc::default() })
    }

    /// An engine that compiles for any processor of this architecture, and as well as it can, for code that is run elsewhere.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn portable() -> Result<Self, EngineError> {
        let failed = |e| EngineError(format!("{e:#}"));
        let mut config = engine_config::config();
        // With a target named, wasmtime takes nothing of this very processor for granted.
        config.target(&format!("{}-unknown-linux-gnu", std::env::consts::ARCH)).map_err(failed)?;
        let wasm = wasmtime::Engine::new(&config).map_err(failed)?;
        Ok(Self { wasm, ticker: Arc::default(), paths: Arc::default(), cache: None, builtin: Arc::default() })
    }

    /// With compiled code from there.
    #[must_use]
    pub fn cached(mut self, cache: Cache) -> Self {
        self.cache = Some(Arc::new(cache));
        self
    }

    /// Starts the clock: a thread that lives until the [`Clock`] is dropped. Plugins run only while there is one, for
    /// without it none could be interrupted. The thread inherits the caller's signal mask.
    ///
    /// # Errors
    /// No thread can be had, or the clock is running already.
    pub fn start_clock(&self) -> io::Result<Clock> {
        let ticker = &self.ticker;
        if ticker.state.compare_exchange(STOPPED, TICKING, SeqCst, SeqCst).is_err() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the clock is running already"));
        }
        ticker.stop.store(false, SeqCst);
        let started = thread::Builder::new().name("callgate-clock".into()).spawn({
            let (wasm, ticker) = (self.wasm.clone(), Arc::clone(ticker));
            move || ticker.run(&wasm)
        });
        match started {
            Ok(thread) => {
                *ticker.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread.thread().clone());
                Ok(Clock { ticker: Arc::clone(ticker), thread: Some(thread) })
            }
            Err(e) => {
                ticker.state.store(STOPPED, SeqCst);
                Err(e)
            }
        }
    }

    /// The code of the built-in plugin, which `load` loads the first time.
    pub(super) fn builtin(
        &self,
        load: impl FnOnce(&wasmtime::Engine) -> wasmtime::Result<Component>,
    ) -> wasmtime::Result<Component> {
        if let Some(loaded) = self.builtin.get() {
            return Ok(loaded.clone());
        }
        let loaded = load(&self.wasm)?;
        Ok(self.builtin.get_or_init(|| loaded).clone())
    }

    /// What wasmtime calls an engine.
    pub fn wasm(&self) -> &wasmtime::Engine {
        &self.wasm
    }

    /// To be held while a plugin runs. `None`: the clock stands still.
    pub(super) fn running(&self) -> Option<Running<'_>> {
        let_faults_through();
        self.ticker.running.fetch_add(1, SeqCst);
        let running = Running(&self.ticker);
        match self.ticker.state.load(SeqCst) {
            TICKING => Some(running),
            STOPPED => None,
            _ => {
                self.ticker.wake();
                Some(running)
            }
        }
    }
}

/// Traps of compiled code are faults, of which wasmtime learns by signals; a fault whose signal is blocked, as threads of the
/// supervisor have every signal, ends the process (signal(7)). Code without such traps would be twice as slow.
fn let_faults_through() {
    thread_local! {
        static DONE: Cell<bool> = const { Cell::new(false) };
    }
    if !DONE.replace(true) {
        let faults: SigSet =
            [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGTRAP].into_iter().collect();
        // It fails only for signals that there are not.
        let _ = faults.thread_unblock();
    }
}

/// The deadline in ticks. One more than it has, for the current one has begun already.
pub(super) fn ticks(deadline: Duration) -> u64 {
    let ticks = deadline.as_nanos().div_ceil(TICK.as_nanos());
    u64::try_from(ticks).unwrap_or(u64::MAX / 2).min(u64::MAX / 2) + 1
}

/// The running clock of an [`Engine`]; dropped, it stops.
pub struct Clock {
    ticker: Arc<Ticker>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.ticker.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It cannot have panicked; if it had, there would be nothing left to stop.
            let _ = thread.join();
        }
        self.ticker.state.store(STOPPED, SeqCst);
    }
}

const STOPPED: u8 = 0;
const TICKING: u8 = 1;
const ASLEEP: u8 = 2;

#[derive(Default)]
struct Ticker {
    state: AtomicU8,
    stop: AtomicBool,
    /// How many plugins are running.
    running: AtomicU32,
    thread: Mutex<Option<Thread>>,
}

impl Ticker {
    fn run(&self, wasm: &wasmtime::Engine) {
        let mut idle = 0;
        while !self.stop.load(SeqCst) {
            if self.running.load(SeqCst) > 0 {
                idle = 0;
                thread::park_timeout(TICK);
            } else if idle < IDLE_TICKS {
                idle += 1;
                thread::park_timeout(IDLE_TICK);
            } else {
                // Whoever begins to run after this store sees it and wakes us; whoever began before is seen here.
                self.state.store(ASLEEP, SeqCst);
                if self.running.load(SeqCst) == 0 && !self.stop.load(SeqCst) {
                    thread::park();
                }
                self.state.store(TICKING, SeqCst);
                idle = 0;
            }
            wasm.increment_epoch();
        }
    }

    #[cold]
    fn wake(&self) {
        if let Some(thread) = &*self.thread.lock().unwrap_or_else(PoisonError::into_inner) {
            thread.unpark();
        }
    }
}

/// Keeps the clock awake.
pub(super) struct Running<'a>(&'a Ticker);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
    }
}
