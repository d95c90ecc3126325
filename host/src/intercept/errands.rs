//! Reads that the workload can hold for as long as it likes: of its memory, and of files on file systems that it has mounted,
//! which may lie with a FUSE server of its own. Whoever decides, decides for everybody, and so sends another thread for them,
//! which it waits for only so long and then leaves where it is.
//!
//! Depends on nothing.

use std::io;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;

/// How long all errands of one decision are waited for together.
const PATIENCE: Duration = Duration::from_millis(400);
/// Each that was waited for in vain halves it for the next ones, so often: a crowd of callers holds up everybody for twice the
/// patience in all, and then for so short a time each as a busy machine needs to come round to a thread.
const HALVINGS: u32 = 4;
/// After so long one of those is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(10);
/// How many threads may be held. After that errands fail at once, until one is back.
const MOST: usize = 32;
const STACK: usize = 256 << 10;

/// Threads that are sent for what may take for ever.
#[derive(Debug, Default)]
pub struct Errands {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// The one who waits to be sent. Another is not needed: who sends it holds the chain of plugins.
    idle: Option<Sender<Errand>>,
    /// With the idle one.
    threads: usize,
    /// How many did not come back in time, as far as that is remembered.
    late: u32,
    /// Since when nothing of that was forgotten.
    remembered: Option<Instant>,
}

type Errand = Box<dyn FnOnce() + Send>;

/// How long the errands of a decision may still take; `None` before the first.
#[derive(Debug, Default)]
pub struct Patience(Option<Duration>);

/// What was wanted was not there in time.
#[derive(Debug, thiserror::Error)]
#[error("it cannot be read in good time")]
pub struct Late;

impl Errands {
    fn state(&self) -> MutexGuard<'_, State> {
        of(&self.state)
    }

    /// Has `errand` run on another thread, and waits for what comes of it.
    ///
    /// # Errors
    /// It has not come in time, or there is nobody to send.
    pub fn run<T: Send + 'static>(
        &self,
        patience: &mut Patience,
        errand: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Late> {
        let left = *patience.0.get_or_insert_with(|| self.state().patience());
        if left.is_zero() {
            return Err(Late);
        }
        let idle = self.state().idle.take();
        let runner = idle.map_or_else(|| self.start(), Ok).map_err(|_| Late)?;
        let begun = Instant::now();
        let (answer, answered) = mpsc::sync_channel(1);
        let errand = move || {
            let _ = answer.send(errand());
        };
        runner.send(Box::new(errand)).map_err(|_| Late)?;
        let found = answered.recv_timeout(left);
        patience.0 = Some(left.saturating_sub(begun.elapsed()));
        match found {
            Ok(found) => {
                self.state().idle = Some(runner);
                Ok(found)
            }
            // Without a sender its thread ends as soon as it is back.
            Err(_) => {
                self.state().was_late();
                Err(Late)
            }
        }
    }

    fn start(&self) -> io::Result<Sender<Errand>> {
        let counted = Counted::new(&self.state).ok_or(io::ErrorKind::WouldBlock)?;
        let (sender, errands) = mpsc::channel::<Errand>();
        thread::Builder::new().name("callgate-errand".into()).stack_size(STACK).spawn(move || {
            let _counted = counted;
            let _ = SigSet::all().thread_block(); // one that is held handles no signal
            while let Ok(errand) = errands.recv() {
                errand();
            }
        })?;
        Ok(sender)
    }
}

fn of(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn forget(&mut self) {
        let Some(since) = self.remembered else { return };
        let forgotten = since.elapsed().as_secs() / FORGOTTEN.as_secs();
        self.late = self.late.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX));
        if forgotten > 0 {
            self.remembered = (self.late > 0).then(Instant::now);
        }
    }

    fn patience(&mut self) -> Duration {
        self.forget();
        PATIENCE / (1 << self.late)
    }

    fn was_late(&mut self) {
        self.forget();
        self.late = (self.late + 1).min(HALVINGS);
        self.remembered.get_or_insert_with(Instant::now);
    }
}

/// A thread, as long as there is one.
struct Counted(Arc<Mutex<State>>);

impl Counted {
    fn new(state: &Arc<Mutex<State>>) -> Option<Self> {
        let mut counting = of(state);
        if counting.threads == MOST {
            return None;
        }
        counting.threads += 1;
        Some(Self(Arc::clone(state)))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        of(&self.0).threads -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends a thread that does not come back before the returned end is dropped.
    fn held(errands: &Errands) -> (Sender<()>, Duration) {
        let (release, released) = mpsc::channel::<()>();
        let begun = Instant::now();
        let late = errands.run(&mut Patience::default(), move || released.recv().is_ok());
        assert!(late.is_err());
        (release, begun.elapsed())
    }

    #[test]
    fn who_does_not_come_back_is_left_behind_and_the_next_is_waited_for_less() {
        let errands = Errands::default();
        assert_eq!(errands.run(&mut Patience::default(), || 1).unwrap(), 1);
        let (first, waited) = held(&errands);
        assert!(waited >= PATIENCE, "{waited:?}");
        assert_eq!(errands.state().patience(), PATIENCE / 2);
        assert_eq!(errands.run(&mut Patience::default(), || 2).unwrap(), 2);
        assert_eq!(errands.state().threads, 2, "one that is held, and one that is idle");
        drop(first);
        let deadline = Instant::now() + Duration::from_secs(30);
        while errands.state().threads > 1 && Instant::now() < deadline {
            thread::yield_now();
        }
        assert_eq!(errands.state().threads, 1);
    }

    #[test]
    fn only_so_many_are_held_and_then_nobody_is_waited_for() {
        let errands = Errands::default();
        let holding: Vec<_> = (0..MOST).map(|_| held(&errands)).collect();
        let began = Instant::now();
        assert!(errands.run(&mut Patience::default(), || ()).is_err());
        assert!(began.elapsed() < PATIENCE);
        let waited: Duration = holding.iter().map(|(_, waited)| *waited).sum();
        assert!(waited < 8 * PATIENCE, "{waited:?}");
        assert_eq!(errands.state().threads, MOST);
    }

    #[test]
    fn one_decision_has_patience_only_once() {
        let errands = Errands::default();
        let (release, released) = mpsc::channel::<()>();
        let mut patience = Patience::default();
        assert!(errands.run(&mut patience, move || released.recv().is_ok()).is_err());
        assert!(errands.run(&mut patience, || ()).is_err());
        drop(release);
    }

    #[test]
    fn an_errand_that_panics_is_one_that_fails() {
        let errands = Errands::default();
        assert!(errands.run(&mut Patience::default(), || -> () { std::panic::resume_unwind(Box::new(())) }).is_err());
        assert_eq!(errands.run(&mut Patience::default(), || 1).unwrap(), 1);
    }
}
