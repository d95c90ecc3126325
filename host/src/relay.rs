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
/// The same once somebody had to be relieved who took long unexpectedly: others who do the same may be many.
const SLOW_CROWD: u32 = 1024;
/// After so many looks at which nothing had been received, nobody looks until something is.
const QUIET: u32 = 50;
/// After so many looks there is a moment for something else.
const SELDOM: u32 = 250;

/// The turn, and who waits for it.
pub struct Relay {
    /// Starts one more thread that calls [`Self::next`].
    start: Box<dyn Fn() -> io::Result<()> + Send + Sync>,
    /// The turn, and what who has it says of it: see [`turn_of`], [`BUSY`]. It is one number, so that a thread that is
    /// relieved in the midst of saying something says nothing of the next one's turn.
    state: AtomicU64,
    /// Counts what was received.
    received: AtomicU64,
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

/// What was received in this turn last is being handled.
const BUSY: u64 = 1;
/// Counts what was received in this turn.
const ONE: u64 = 2;
/// The first bit of the turn's number. It would take years to use up.
const TURN_BIT: u32 = 24;

/// The number of the turn.
fn turn_of(state: u64) -> u64 {
    state >> TURN_BIT
}

/// What is said in the beginning of a turn.
fn begun(turn: u64) -> u64 {
    turn << TURN_BIT
}

fn received(state: u64) -> u64 {
    let said = (state | BUSY) + if state & BUSY == 0 { ONE } else { 0 };
    begun(turn_of(state)) | said & (begun(1) - 1)
}

thread_local! {
    /// The turn that the thread had last.
    static TURN: Cell<u64> = const { Cell::new(0) };
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.load(SeqCst);
        let (turn, busy) = (turn_of(state), state & BUSY != 0);
        f.debug_struct("Relay").field("turn", &turn).field("busy", &busy).finish_non_exhaustive()
    }
}

impl Relay {
    /// The first turn is vacant.
    pub fn new(start: impl Fn() -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self {
            start: Box::new(start),
            state: AtomicU64::new(begun(1)),
            received: AtomicU64::new(0),
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
        if self.say(|state| state & !BUSY) {
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
        turn_of(self.state.load(SeqCst)) == TURN.get()
    }

    /// Says something else of the calling thread's turn; false if that is over.
    fn say(&self, what: impl Fn(u64) -> u64) -> bool {
        let own = |state| (turn_of(state) == TURN.get()).then(|| what(state));
        self.state.fetch_update(SeqCst, SeqCst, own).is_ok()
    }

    /// The calling thread has received something, and handles it now.
    pub fn received(&self) {
        self.received.fetch_add(1, SeqCst);
        self.say(received);
        if self.nobody_looks.load(SeqCst)
            && let Some(relief) = self.relief.get()
        {
            relief.unpark();
        }
    }

    /// Lets another receive: what the calling thread does now may take long.
    pub fn hand_over(&self) {
        let next = TURN.get() + 1;
        if self.say(|_| begun(next)) {
            self.vacated(next);
        }
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
            self.crowd.fetch_max(CROWD, SeqCst);
        }
    }

    /// Somebody is to take this turn.
    fn vacated(&self, turn: u64) {
        let mut waiting = self.waiting();
        waiting.vacant = Some(turn);
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
            let state = self.state.load(SeqCst);
            if state & BUSY != 0 {
                thread::park_timeout(PATIENCE);
                self.relieve_of(state);
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

    /// Ends the turn if its thread still does what it did when this was its state.
    fn relieve_of(&self, state: u64) {
        let next = turn_of(state) + 1;
        if self.state.compare_exchange(state, begun(next), SeqCst, SeqCst).is_ok() {
            self.crowd.store(SLOW_CROWD, SeqCst);
            self.vacated(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_relieved_says_nothing_of_the_next_turn() {
        let relay = Relay::new(|| Ok(()));
        assert!(relay.next());
        relay.received();
        relay.relieve_of(relay.state.load(SeqCst));
        thread::scope(|scope| {
            scope.spawn(|| {
                assert!(relay.next());
                relay.received();
            });
        });
        let next = relay.state.load(SeqCst);
        assert_eq!(next & BUSY, BUSY);
        relay.received();
        relay.hand_over();
        assert!(!relay.say(|state| state & !BUSY));
        assert_eq!(relay.state.load(SeqCst), next);
    }

    #[test]
    fn nobody_is_relieved_who_has_got_on() {
        let relay = Relay::new(|| Ok(()));
        assert!(relay.next());
        relay.received();
        let then = relay.state.load(SeqCst);
        assert!(relay.next());
        relay.received();
        relay.relieve_of(then);
        assert!(relay.is_ours());
    }

    #[test]
    fn a_turn_is_not_changed_by_what_is_received_in_it() {
        let last = begun(7) | (begun(1) - 1) & !BUSY;
        assert_eq!(received(last), begun(7) | BUSY);
    }
}
