//! What callgate says about its own work, on standard error: `callgate: warning: …`. Records of events are the business of
//! [`crate::audit`].
//!
//! Once there is a workload, whoever has something to say does not wait until it is written: a pipe that nobody reads, or a
//! terminal that the workload has stopped, would hold up decisions.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{self, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Begins to log. `filter` is a level (`warn`) or a filter in the syntax of `tracing-subscriber` (`warn,callgate=debug`).
///
/// # Errors
/// The filter is none.
pub fn start(filter: &str) -> Result<()> {
    // A word that is no level would be taken for the name of a part of the program, of which there is none.
    let is_level = |word: &str| word.contains(['=', '[']) || word.trim().parse::<LevelFilter>().is_ok();
    let parsed = EnvFilter::try_new(filter).ok().filter(|_| filter.split(',').all(is_level));
    let parsed =
        parsed.with_context(|| format!("CALLGATE_LOG is {filter:?}; it takes error, warn, info, debug or trace"))?;
    let log = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(|| Lines);
    // Fields are coloured, whatever the format does; a container's log is no terminal.
    log.with_ansi(std::io::stderr().is_terminal()).event_format(Plain).init();
    Ok(())
}

/// Says something on standard error at once, and waits until it is written.
pub fn say(what: &str) {
    write(format!("callgate: {what}\n").as_bytes());
}

/// Writes lines with one system call, so that no record or word of the workload gets in between.
fn write(lines: &[u8]) {
    let _ = io::stderr().write_all(lines);
}

/// How many lines may wait to be written. What comes then is lost, and counted.
const WAITING: usize = 256;

/// Lines on their way to a thread that writes them.
struct Queue {
    lines: SyncSender<Vec<u8>>,
    /// How many lines were taken, and how many of them are written.
    taken: AtomicU64,
    written: AtomicU64,
    lost: AtomicU64,
}

static QUEUE: OnceLock<Queue> = OnceLock::new();

/// From now on lines are written by a thread of this process.
///
/// # Errors
/// It cannot be started.
pub fn detach() -> io::Result<()> {
    let (lines, waiting) = mpsc::sync_channel::<Vec<u8>>(WAITING);
    let zero = AtomicU64::default;
    let _ = QUEUE.set(Queue { lines, taken: zero(), written: zero(), lost: zero() });
    thread::Builder::new().name("callgate-log".into()).stack_size(64 << 10).spawn(move || {
        for line in waiting {
            write(&line);
            let Some(queue) = QUEUE.get() else { return };
            queue.written.fetch_add(1, SeqCst);
            let lost = queue.lost.swap(0, SeqCst);
            if lost > 0 {
                say(&format!("warning: {lost} lines are missing here: nobody took them in time"));
            }
        }
    })?;
    Ok(())
}

/// Waits until all lines are written, but not longer than this.
pub fn flush(patience: Duration) {
    let deadline = Instant::now() + patience;
    while let Some(queue) = QUEUE.get()
        && queue.written.load(SeqCst) < queue.taken.load(SeqCst)
        && Instant::now() < deadline
    {
        thread::sleep(Duration::from_millis(1));
    }
}

struct Lines;

impl Write for Lines {
    /// A line, which comes as a whole.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Some(queue) = QUEUE.get() else {
            write(line);
            return Ok(line.len());
        };
        queue.taken.fetch_add(1, SeqCst);
        if queue.lines.try_send(line.to_vec()).is_err() {
            queue.taken.fetch_sub(1, SeqCst);
            queue.lost.fetch_add(1, SeqCst);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Plain;

impl<S: Subscriber + for<'a> LookupSpan<'a>, N: for<'a> FormatFields<'a> + 'static> FormatEvent<S, N> for Plain {
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        write!(to, "callgate: {level}: ")?;
        context.format_fields(to.by_ref(), event)?;
        writeln!(to)
    }
}
