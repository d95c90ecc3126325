//! Records, sinks and back-pressure.
//!
//! Each sink has a queue and a thread of its own; the decision only writes the record down and puts it into the queues. A
//! sink that does not keep up loses records, which are counted and said at the end, or, if the policy says so, holds up the
//! calls that are to be recorded.
//!
//! May depend on `event`, `policy` and `decide`.

mod line;

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::decide::Decision;
use crate::event::{Event, Subject};
use crate::policy::{AuditSettings, Decisions, Format, Mode, SinkTarget, WhenFull};

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
pub struct Record<'a> {
    /// The mode the decision was made in.
    pub mode: Mode,
    /// The event.
    pub event: &'a Event,
    /// The subject's ancestors, parent first.
    pub ancestors: Vec<Subject>,
    /// The decision.
    pub decision: &'a Decision,
    /// What became of the call.
    pub outcome: Outcome,
}

/// The audit log.
pub struct Audit {
    mode: Mode,
    decisions: Decisions,
    when_full: WhenFull,
    sinks: Vec<Queue>,
}

struct Queue {
    name: String,
    text: bool,
    colour: bool,
    lines: Mutex<Option<SyncSender<Item>>>,
    progress: Arc<Progress>,
}

enum Item {
    Line(String),
    Flush(SyncSender<()>),
}

#[derive(Default)]
struct Progress {
    dropped: AtomicU64,
    failed: AtomicU64,
}

impl Audit {
    /// Opens the sinks and starts a thread for each.
    ///
    /// # Errors
    /// A file or descriptor cannot be opened. A socket that nobody listens on yet is tried again for each record.
    pub fn start(settings: &AuditSettings, mode: Mode) -> Result<Self> {
        let mut sinks = Vec::new();
        for sink in &settings.sinks {
            let name = sink.to.to_string();
            let writer = Writer::open(&sink.to).with_context(|| format!("cannot open the audit sink {name}"))?;
            let terminal = writer.is_terminal();
            let (sender, lines) = sync_channel(settings.queue);
            let progress = Arc::new(Progress::default());
            let theirs = Arc::clone(&progress);
            std::thread::Builder::new()
                .name("callgate-audit".into())
                .stack_size(256 << 10)
                .spawn(move || writer.write_all(&lines, &theirs))
                .context("cannot start a thread")?;
            sinks.push(Queue {
                name,
                text: sink.format == Format::Text || sink.format == Format::Auto && terminal,
                colour: terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
                lines: Mutex::new(Some(sender)),
                progress,
            });
        }
        Ok(Self { mode, decisions: settings.decisions, when_full: settings.when_full, sinks })
    }

    /// Whether allowed calls are recorded too.
    pub fn wants_all(&self) -> bool {
        self.decisions == Decisions::All
    }

    /// Writes a record.
    pub fn record(&self, record: &Record<'_>) {
        self.put(|queue| if queue.text { line::text(record, queue.colour) } else { line::json(record) });
    }

    fn put(&self, line: impl Fn(&Queue) -> String) {
        for queue in &self.sinks {
            let sender = queue.lines.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let Some(sender) = sender else { continue };
            let item = Item::Line(line(queue));
            let lost = match self.when_full {
                WhenFull::Drop => {
                    matches!(sender.try_send(item), Err(TrySendError::Full(_) | TrySendError::Disconnected(_)))
                }
                WhenFull::Block => sender.send(item).is_err(),
            };
            if lost {
                queue.progress.dropped.fetch_add(1, Relaxed);
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
                && sender.try_send(Item::Flush(done)).is_ok()
            {
                let left = deadline.saturating_duration_since(Instant::now());
                if wait.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
                    tracing::debug!(sink = queue.name, "not written in time");
                }
            }
        }
    }

    /// Says what was lost, and waits for the sinks, for `most` at the most.
    pub fn finish(&self, most: Duration) {
        let lost: Vec<(&str, u64)> = self
            .sinks
            .iter()
            .map(|queue| {
                let progress = &queue.progress;
                (queue.name.as_str(), progress.dropped.load(Relaxed) + progress.failed.load(Relaxed))
            })
            .filter(|(_, count)| *count > 0)
            .collect();
        if !lost.is_empty() {
            self.put(|queue| line::lost(self.mode, &lost, queue.text));
        }
        self.flush(most);
        for queue in &self.sinks {
            queue.lines.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }
}

enum Writer {
    Stderr,
    File(File),
    Unix(PathBuf, Option<Connection>),
}

enum Connection {
    Stream(UnixStream),
    Datagram(UnixDatagram),
}

impl Writer {
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
            SinkTarget::Fd(fd) => {
                let file = OpenOptions::new().append(true).open(format!("/proc/self/fd/{fd}"));
                Self::File(file.or_else(|_| OpenOptions::new().write(true).open(format!("/proc/self/fd/{fd}")))?)
            }
            SinkTarget::Unix(path) => Self::Unix(path.clone(), connect(path).ok()),
        })
    }

    fn is_terminal(&self) -> bool {
        match self {
            Self::Stderr => io::stderr().is_terminal(),
            Self::File(file) => file.is_terminal(),
            Self::Unix(..) => false,
        }
    }

    fn write_all(mut self, lines: &Receiver<Item>, progress: &Progress) {
        for item in lines {
            match item {
                Item::Line(line) => {
                    if self.write(line.as_bytes()).is_err() {
                        progress.failed.fetch_add(1, Relaxed);
                    }
                }
                Item::Flush(done) => {
                    let _ = done.send(());
                }
            }
        }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::Stderr => io::stderr().write_all(line),
            Self::File(file) => file.write_all(line),
            Self::Unix(path, connection) => {
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
            let file = File::open(format!("/proc/self/fd/{number}"));
            if let Err(error) = &file
                && error.kind() == io::ErrorKind::NotFound
            {
                anyhow::bail!("the audit sink fd:{number} is not an open descriptor");
            }
            let borrowed = crate::sys::process::borrow(number);
            fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
                .with_context(|| format!("audit sink fd:{number}"))?;
        }
    }
    Ok(())
}
