//! Records, sinks and back-pressure.
//!
//! Each sink has a queue and a thread of its own, which writes down what the decision has put into the queue. A
//! sink that does not keep up loses records, which are counted and said at the end, or, if the policy says so, holds up the
//! calls that are to be recorded.
//!
//! May depend on `event`, `policy` and `decide`.

pub mod line;

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::decide::Decision;
use crate::event::{Action, Event, Subject};
use crate::policy::{AuditSettings, Decisions, Format, Mode, SinkTarget, Source, WhenFull};

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was carried out, or went on.
    Allowed,
    /// The caller got this errno.
    Denied(i32),
    /// It would have been denied, were it not for the dry run.
    WouldDeny(i32),
    /// The caller was killed: what it began to do was not what had been decided.
    Killed,
}

/// Everything that the audit log says about one event.
#[derive(Debug, Clone)]
pub struct Record {
    /// The mode the decision was made in.
    pub mode: Mode,
    /// The event.
    pub event: Event,
    /// The subject's ancestors, parent first.
    pub ancestors: Vec<Subject>,
    /// The decision.
    pub decision: Decision,
    /// What became of the call.
    pub outcome: Outcome,
}

/// A call that the supervisor itself refuses, because it would be a way around or is aimed at us.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The mode.
    pub mode: Mode,
    /// When the notification was received, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Who called.
    pub subject: Subject,
    /// The subject's ancestors, parent first.
    pub ancestors: Vec<Subject>,
    /// The system call's name, if this build knows it.
    pub call: Option<&'static str>,
    /// Its number.
    pub number: i32,
    /// `AUDIT_ARCH_…` of the entry.
    pub architecture: u32,
    /// Our rule.
    pub rule: String,
    /// Why, in a sentence.
    pub reason: String,
    /// What became of the call.
    pub outcome: Outcome,
}

/// Another policy is in force.
#[derive(Debug, Clone)]
pub struct Reloaded {
    /// The mode from now on.
    pub mode: Mode,
    /// When, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// The policy.
    pub policy: Source,
    /// How it came.
    pub by: &'static str,
    /// The names of its plugins.
    pub plugins: Vec<String>,
}

/// The audit log.
pub struct Audit {
    /// Records so far.
    count: AtomicU64,
    decisions: Decisions,
    when_full: WhenFull,
    sinks: Vec<Queue>,
}

struct Queue {
    name: String,
    lines: Mutex<Option<SyncSender<Item>>>,
    progress: Arc<Progress>,
}

enum Item {
    /// With its number.
    Entry(Arc<Entry>, u64),
    Flush(SyncSender<()>),
}

#[expect(clippy::large_enum_variant, reason = "behind an Arc, and nearly all are of the largest")]
enum Entry {
    Decision(Record),
    Refusal(Refusal),
    Reloaded(Reloaded),
    /// How many records each sink has lost.
    Lost(Mode, Vec<(String, u64)>),
}

impl Entry {
    /// About how many bytes it takes while it waits.
    fn size(&self) -> usize {
        let Self::Decision(Record { event: Event { action, .. }, ancestors, .. }) = self else {
            return size_of::<Self>();
        };
        let arguments = match action {
            Action::Exec(exec) | Action::ExecFileless(exec) => exec.arguments.as_slice(),
            _ => &[],
        };
        let strings = arguments.iter().map(|argument| size_of::<String>() + argument.len()).sum::<usize>();
        let ancestors =
            ancestors.iter().map(|ancestor| size_of::<Subject>() + ancestor.executable.len()).sum::<usize>();
        // Paths, mostly, of which a record has some.
        size_of::<Self>() + 1024 + strings + ancestors
    }

    fn line(&self, number: u64, text: bool, colour: bool) -> String {
        match self {
            Self::Decision(record) if text => line::text(record, colour),
            Self::Decision(record) => line::json(record, number),
            Self::Refusal(refusal) if text => line::refusal_text(refusal, colour),
            Self::Refusal(refusal) => line::refusal_json(refusal, number),
            Self::Reloaded(reloaded) if text => line::reloaded_text(reloaded, colour),
            Self::Reloaded(reloaded) => line::reloaded_json(reloaded, number),
            Self::Lost(mode, lost) => line::lost(*mode, number, lost, text),
        }
    }
}

#[derive(Default)]
struct Progress {
    dropped: AtomicU64,
    failed: AtomicU64,
    /// Bytes of the records that wait.
    waiting: Mutex<usize>,
    less: Condvar,
}

/// How many bytes all records that wait for a sink may take together. A record has arguments of up to 64 KiB; as many of
/// those as there may be records would take all memory.
const WAITING_MAX: usize = 32 << 20;

impl Progress {
    fn waiting(&self) -> MutexGuard<'_, usize> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for a record of this length. Whether there is any; `when_full` says whether it is waited for.
    fn makes_room(&self, length: usize, when_full: WhenFull) -> bool {
        let mut waiting = self.waiting();
        while *waiting > 0 && *waiting + length > WAITING_MAX {
            if when_full == WhenFull::Drop {
                return false;
            }
            waiting = self.less.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        *waiting += length;
        true
    }

    fn gives_room_back(&self, length: usize) {
        *self.waiting() -= length;
        self.less.notify_all();
    }
}

impl Audit {
    /// Opens the sinks and starts a thread for each.
    ///
    /// # Errors
    /// A file or descriptor cannot be opened. A socket is connected to when there is a record, and again if that fails.
    pub fn start(settings: &AuditSettings) -> Result<Self> {
        let mut sinks = Vec::new();
        for sink in &settings.sinks {
            let name = sink.to.to_string();
            let place = Place::open(&sink.to).with_context(|| format!("cannot open the audit sink {name}"))?;
            let terminal = place.is_terminal();
            let writer = Writer {
                place,
                persistent: settings.when_full == WhenFull::Block,
                naps: settings.when_full == WhenFull::Drop && settings.queue >= Writer::LONG,
                text: sink.format == Format::Text || sink.format == Format::Auto && terminal,
                colour: terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
            };
            let (sender, lines) = sync_channel(settings.queue);
            let progress = Arc::new(Progress::default());
            let theirs = Arc::clone(&progress);
            std::thread::Builder::new()
                .name("callgate-audit".into())
                .stack_size(256 << 10)
                .spawn(move || writer.write_all(&lines, &theirs))
                .context("cannot start a thread")?;
            sinks.push(Queue { name, lines: Mutex::new(Some(sender)), progress });
        }
        Ok(Self { count: AtomicU64::new(0), decisions: settings.decisions, when_full: settings.when_full, sinks })
    }

    /// Whether allowed calls are recorded too.
    pub fn wants_all(&self) -> bool {
        self.decisions == Decisions::All
    }

    /// Writes a record of a decision.
    pub fn record(&self, record: Record) {
        self.put(Entry::Decision(record));
    }

    /// Writes a record of a call that we refuse.
    pub fn refusal(&self, refusal: Refusal) {
        self.put(Entry::Refusal(refusal));
    }

    /// Writes a record of another policy that is in force now.
    pub fn reloaded(&self, reloaded: Reloaded) {
        self.put(Entry::Reloaded(reloaded));
    }

    fn put(&self, entry: Entry) {
        let number = self.count.fetch_add(1, Relaxed) + 1;
        let size = entry.size();
        let entry = Arc::new(entry);
        for queue in &self.sinks {
            let sender = queue.lines.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let Some(sender) = sender else { continue };
            let item = Item::Entry(Arc::clone(&entry), number);
            let room = queue.progress.makes_room(size, self.when_full);
            let lost = match self.when_full {
                _ if !room => true,
                WhenFull::Drop => sender.try_send(item).is_err(),
                WhenFull::Block => sender.send(item).is_err(),
            };
            if lost {
                queue.progress.dropped.fetch_add(1, Relaxed);
            }
            if lost && room {
                queue.progress.gives_room_back(size);
            }
        }
    }

    /// Waits until what has been recorded so far is written, for `most` at the most.
    pub fn flush(&self, most: Duration) {
        let deadline = Instant::now() + most;
        for queue in &self.sinks {
            let sender = queue.lines.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let (done, wait) = sync_channel(1);
            if let Some(sender) = sender
                && send_until(&sender, Item::Flush(done), deadline)
            {
                let left = deadline.saturating_duration_since(Instant::now());
                if wait.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
                    tracing::debug!(sink = queue.name, "not written in time");
                }
            }
        }
    }

    /// Says what was lost, and waits for the sinks, for `most` at the most.
    pub fn finish(&self, mode: Mode, most: Duration) {
        let lost: Vec<(String, u64)> = self
            .sinks
            .iter()
            .map(|queue| {
                let progress = &queue.progress;
                (queue.name.clone(), progress.dropped.load(Relaxed) + progress.failed.load(Relaxed))
            })
            .filter(|(_, count)| *count > 0)
            .collect();
        if !lost.is_empty() {
            self.put(Entry::Lost(mode, lost));
        }
        self.flush(most);
        for queue in &self.sinks {
            queue.lines.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }
}

/// Whether there was room in the queue in time.
fn send_until(sender: &SyncSender<Item>, mut item: Item, deadline: Instant) -> bool {
    const SOON: Duration = Duration::from_micros(200);
    loop {
        match sender.try_send(item) {
            Ok(()) => return true,
            Err(TrySendError::Full(back)) if Instant::now() < deadline => item = back,
            Err(_) => return false,
        }
        std::thread::sleep(SOON);
    }
}

/// Writes one sink's lines, on a thread of its own.
struct Writer {
    place: Place,
    /// Whether a line that cannot be written is tried again until it can: the policy wants no record lost.
    persistent: bool,
    /// Whether it may sleep while the queue fills.
    naps: bool,
    text: bool,
    colour: bool,
}

impl Writer {
    /// How soon a line is tried again; twice as long each time, up to `LONGEST`.
    const FIRST: Duration = Duration::from_millis(10);
    const LONGEST: Duration = Duration::from_secs(1);

    /// How long it sleeps when all is written: whoever records something meanwhile need not wake it, which costs more than
    /// recording.
    const NAP: Duration = Duration::from_millis(1);
    /// A queue in which there is room for what comes in that time.
    const LONG: usize = 1024;

    fn write_all(mut self, lines: &Receiver<Item>, progress: &Progress) {
        for first in lines {
            self.take(first, progress);
            while let Ok(next) = lines.try_recv() {
                self.take(next, progress);
            }
            if self.naps {
                std::thread::sleep(Self::NAP);
            }
        }
    }

    fn take(&mut self, item: Item, progress: &Progress) {
        match item {
            Item::Entry(entry, number) => {
                let line = entry.line(number, self.text, self.colour);
                let mut pause = Self::FIRST;
                while let Err(error) = self.place.write(line.as_bytes()) {
                    if !self.persistent {
                        progress.failed.fetch_add(1, Relaxed);
                        break;
                    }
                    tracing::warn!(%error, "a record cannot be written; it will be tried again");
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Self::LONGEST);
                }
                progress.gives_room_back(entry.size());
            }
            Item::Flush(done) => {
                let _ = done.send(());
            }
        }
    }
}

enum Place {
    Stderr,
    File(File),
    Unix(PathBuf, Option<Connection>),
}

enum Connection {
    Stream(UnixStream),
    Datagram(UnixDatagram),
}

impl Place {
    fn open(target: &SinkTarget) -> io::Result<Self> {
        Ok(match target {
            SinkTarget::Stderr => Self::Stderr,
            SinkTarget::File(path) => Self::File(
                OpenOptions::new()
                    .append(true)
                    .create(true)
                    .mode(0o600)
                    .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
                    .open(path)?,
            ),
            SinkTarget::Fd(fd) => Self::File(File::from(crate::sys::process::duplicate(*fd)?)),
            // Connecting waits for a listener that is busy, and is left to the writer's thread.
            SinkTarget::Unix(path) => Self::Unix(path.clone(), None),
        })
    }

    fn is_terminal(&self) -> bool {
        match self {
            Self::Stderr => io::stderr().is_terminal(),
            Self::File(file) => file.is_terminal(),
            Self::Unix(..) => false,
        }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::Stderr => write_patiently(&io::stderr(), line),
            Self::File(file) => write_patiently(file, line),
            Self::Unix(path, connection) => {
                // A collector that was started again gets a second try.
                for _ in 0..2 {
                    let connected = match connection.take() {
                        Some(connected) => connected,
                        None => connect(path)?,
                    };
                    let sent = match &connected {
                        Connection::Stream(stream) => (&*stream).write_all(line),
                        Connection::Datagram(socket) => socket.send(line.trim_ascii_end()).map(drop),
                    };
                    if sent.is_ok() {
                        *connection = Some(connected);
                        return Ok(());
                    }
                }
                Err(io::ErrorKind::NotConnected.into())
            }
        }
    }
}

/// Writes all of it, also where somebody who shares the open file has made it non-blocking.
fn write_patiently<F>(to: &F, mut bytes: &[u8]) -> io::Result<()>
where
    F: AsFd,
{
    while !bytes.is_empty() {
        match nix::unistd::write(to, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                poll(&mut [PollFd::new(to.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn connect(path: &PathBuf) -> io::Result<Connection> {
    UnixStream::connect(path).map(Connection::Stream).or_else(|_| {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        Ok(Connection::Datagram(socket))
    })
}

/// Keeps the descriptors of `fd:` sinks from the workload. To be called before it is started.
///
/// # Errors
/// There is no such descriptor.
pub fn withhold_descriptors(settings: &AuditSettings) -> Result<()> {
    for sink in &settings.sinks {
        if let SinkTarget::Fd(number) = sink.to {
            fcntl(crate::sys::process::borrow(number), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
                .with_context(|| format!("the audit sink fd:{number} is not an open descriptor"))?;
        }
    }
    Ok(())
}
