//! Whose turn it is to receive notifications.
//!
//! One thread at a time: the kernel wakes all that wait for a notification, and all but one of them in vain. Whoever has
//! received one handles it, and meanwhile nobody receives; for as short a time as most calls take, waking another thread would
//! cost more than waiting. So before a thread does what may take long it hands over its turn. If it takes long unexpectedly (a
//! page of a caller's memory that does not come), it is relieved of it by a thread that looks now and then.
//!
//! Depends on nothing.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

/// How many threads there may be: that many calls under way, and the rest waits in the kernel.
pub const THREADS: usize = 4096;
/// How many threads stay when there is nothing to do.
const SPARE: usize = 3;
/// How often it is looked whether the thread whose turn it is gets on.
const LOOK: Duration = Duration::from_millis(4);
/// How long one may take that was found busy.
const PATIENCE: Duration = Duration::from_millis(1);
/// For how many short waits others are woken to receive meanwhile, once somebody had to wait for one of them.
const CROWD: u32 = 64;
/// After so many looks at which nothing had been received, nobody looks until something is.
const QUIET: u32 = 50;
/// After so many looks there is a moment for something else.
const SELDOM: u32 = 250;

/// The turn, and who waits for it.
pub struct Relay {
    /// Starts one more thread that calls [`Self::next`].
    start: Box<dyn Fn() -> io::Result<()> + Send + Sync>,
    /// The number of the turn.
    turn: AtomicU64,
    /// Counts what was received.
    received: AtomicU64,
    /// Which of them is being handled by the thread whose turn it is; 0 for none.
    busy: AtomicU64,
    /// For how many more short waits others are woken.
    crowd: AtomicU32,
    waiting: Mutex<Waiting>,
    vacant: Condvar,
    nobody_looks: AtomicBool,
    relief: OnceLock<Thread>,
}

#[derive(Default)]
struct Waiting {
    /// The turn that nobody has taken yet.
    vacant: Option<u64>,
    threads: usize,
    spare: usize,
}

thread_local! {
    /// The turn that the thread had last.
    static TURN: Cell<u64> = const { Cell::new(0) };
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("turn", &self.turn).field("busy", &self.busy).finish_non_exhaustive()
    }
}

impl Relay {
    /// The first turn is vacant.
    pub fn new(start: impl Fn() -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self {
            start: Box::new(start),
            turn: AtomicU64::new(1),
            received: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            crowd: AtomicU32::new(0),
            waiting: Mutex::new(Waiting { vacant: Some(1), ..Waiting::default() }),
            vacant: Condvar::new(),
            nobody_looks: AtomicBool::new(false),
            relief: OnceLock::new(),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts one more thread.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start(&self) -> io::Result<()> {
        self.waiting().threads += 1;
        (self.start)().inspect_err(|_| self.waiting().threads -= 1)
    }

    /// How many threads there are, with those that are being started.
    pub fn threads(&self) -> usize {
        self.waiting().threads
    }

    /// Waits until it is the calling thread's turn; still, or again. False: there are enough others, and it is to end.
    pub fn next(&self) -> bool {
        if self.is_ours() {
            self.busy.store(0, SeqCst);
            return true;
        }
        let mut waiting = self.waiting();
        loop {
            if let Some(turn) = waiting.vacant.take() {
                TURN.set(turn);
                return true;
            }
            if waiting.spare == SPARE {
                waiting.threads -= 1;
                return false;
            }
            waiting.spare += 1;
            waiting = self.vacant.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            waiting.spare -= 1;
        }
    }

    fn is_ours(&self) -> bool {
        self.turn.load(SeqCst) == TURN.get()
    }

    /// The calling thread has received something, and handles it now.
    pub fn received(&self) {
        let number = self.received.fetch_add(1, SeqCst) + 1;
        if self.is_ours() {
            self.busy.store(number, SeqCst);
        }
        if self.nobody_looks.load(SeqCst)
            && let Some(relief) = self.relief.get()
        {
            relief.unpark();
        }
    }

    /// Lets another receive: what the calling thread does now may take long.
    pub fn hand_over(&self) {
        self.vacate(TURN.get());
    }

    /// The same before something that takes less time than it costs another caller to wait for a thread to be woken: only
    /// if there was such a caller lately.
    pub fn hand_over_to_a_crowd(&self) {
        if self.crowd.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
            self.hand_over();
        }
    }

    /// After that: `waited` tells whether somebody has had to wait, which matters only if nobody was woken.
    pub fn look_for_a_crowd(&self, waited: impl FnOnce() -> bool) {
        if self.is_ours() && waited() {
            self.crowd.store(CROWD, SeqCst);
        }
    }

    fn vacate(&self, turn: u64) {
        let next = turn + 1;
        if self.turn.compare_exchange(turn, next, SeqCst, SeqCst).is_err() {
            return;
        }
        self.busy.store(0, SeqCst);
        let mut waiting = self.waiting();
        waiting.vacant = Some(next);
        let (spare, threads) = (waiting.spare, waiting.threads);
        drop(waiting);
        if spare > 0 {
            self.vacant.notify_one();
        } else if threads < THREADS {
            // Without another thread calls wait until one of those that there are is done; nothing is lost.
            let _ = self.start();
        }
    }

    /// Relieves, for ever, those who take long. To be called on a thread of its own, once. `seldom` is called about once a
    /// second, and before there is nothing to do.
    pub fn relieve(&self, seldom: impl Fn()) {
        let _ = self.relief.set(thread::current());
        let (mut before, mut quiet, mut looks) = (0, 0, 0_u32);
        loop {
            thread::park_timeout(LOOK);
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(SELDOM) {
                seldom();
            }
            let received = self.received.load(SeqCst);
            let (turn, busy) = (self.turn.load(SeqCst), self.busy.load(SeqCst));
            if busy != 0 {
                thread::park_timeout(PATIENCE);
                if (self.turn.load(SeqCst), self.busy.load(SeqCst)) == (turn, busy) {
                    self.vacate(turn);
                }
                continue;
            }
            quiet = if received == before { quiet + 1 } else { 0 };
            before = received;
            if quiet == QUIET {
                seldom();
                // Whoever receives something after this store sees it and wakes us; what was received before is seen here.
                self.nobody_looks.store(true, SeqCst);
                if self.received.load(SeqCst) == received {
                    thread::park();
                }
                self.nobody_looks.store(false, SeqCst);
                quiet = 0;
            }
        }
    }
}
