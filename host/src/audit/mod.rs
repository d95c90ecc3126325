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
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::decide::Decision;
use crate::event::{Event, Subject};
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
    pub decision: Arc<Decision>,
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
    /// Whether nothing is said about what it has lost: it is our own standard error.
    silent: bool,
    lines: Mutex<Option<Sender<Item>>>,
    progress: Arc<Progress>,
}

/// A record and its number.
type Item = (Arc<Entry>, u64);

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
        let ancestors =
            ancestors.iter().map(|ancestor| size_of::<Subject>() + ancestor.executable.len()).sum::<usize>();
        // The decision has some sentences.
        size_of::<Self>() + size_of::<Decision>() + 1024 + action.length() + ancestors
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
    /// How many records the sink may lag behind.
    most: u64,
    /// Records for which there was no room.
    dropped: AtomicU64,
    /// Records that could not be written.
    failed: AtomicU64,
    /// Why the last one that could not be written could not, even if it was in the end.
    error: Mutex<Option<String>>,
    /// How many of the lost records have been said to be lost.
    said: AtomicU64,
    waiting: Mutex<Waiting>,
    less: Condvar,
}

#[derive(Default)]
struct Waiting {
    /// Nobody takes any more.
    over: bool,
    /// Bytes of the records that wait.
    bytes: usize,
    /// How many records were taken, and how many of them are through: written, or given up.
    taken: u64,
    through: u64,
}

/// How many bytes all records that wait for a sink may take together. A record has arguments of up to 64 KiB; as many of
/// those as there may be records would take all memory.
const WAITING_MAX: usize = 32 << 20;

impl Progress {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a record of this length, if there is room; `when_full` says whether that is waited for.
    fn takes(&self, length: usize, when_full: WhenFull) -> bool {
        let mut waiting = self.waiting();
        while waiting.over
            || waiting.taken - waiting.through >= self.most
            || waiting.bytes > 0 && waiting.bytes + length > WAITING_MAX
        {
            if waiting.over || when_full == WhenFull::Drop {
                return false;
            }
            waiting = self.less.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        waiting.bytes += length;
        waiting.taken += 1;
        true
    }

    fn is_through(&self, length: usize) {
        let mut waiting = self.waiting();
        waiting.bytes -= length;
        waiting.through += 1;
        self.less.notify_all();
    }

    fn fails(&self, why: &str) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.to_owned());
    }

    /// Waits until what has been taken so far is through. Whether it is.
    fn catches_up(&self, deadline: Instant) -> bool {
        let mut waiting = self.waiting();
        let target = waiting.taken;
        while waiting.through < target.min(waiting.taken) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            waiting = self.less.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// How many records will not reach the sink.
    fn lost(&self) -> u64 {
        self.dropped.load(Relaxed) + self.failed.load(Relaxed)
    }

    /// How many still wait for it.
    fn late(&self) -> u64 {
        let waiting = self.waiting();
        waiting.taken - waiting.through
    }

    fn why_lost(&self) -> String {
        let error = self.error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        error.unwrap_or_else(|| "nobody took them in time".to_owned())
    }
}

impl Audit {
    /// Starts a thread for each sink.
    ///
    /// # Errors
    /// One cannot be started.
    pub fn start(settings: &AuditSettings, sinks: Sinks) -> io::Result<Self> {
        let mut queues = Vec::new();
        for (sink, place) in settings.sinks.iter().zip(sinks.0) {
            let name = line::plain(&sink.to.to_string());
            let terminal = place.is_terminal();
            // Standard error could not be told there that it does not work.
            let silent = matches!(place, Place::Stderr(_));
            let writer = Writer {
                name: name.clone(),
                place,
                persistent: settings.when_full == WhenFull::Block,
                naps: settings.when_full == WhenFull::Drop && settings.queue >= Writer::LONG,
                text: sink.format == Format::Text || sink.format == Format::Auto && terminal,
                colour: terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
                silent,
            };
            let (sender, lines) = channel();
            let progress = Arc::new(Progress { most: settings.queue as u64, ..Progress::default() });
            let theirs = Taking(Arc::clone(&progress));
            std::thread::Builder::new()
                .name("callgate-audit".into())
                .stack_size(256 << 10)
                .spawn(move || writer.write_all(&lines, &theirs.0))?;
            queues.push(Queue { name, silent, lines: Mutex::new(Some(sender)), progress });
        }
        let (decisions, when_full) = (settings.decisions, settings.when_full);
        Ok(Self { count: AtomicU64::new(0), decisions, when_full, sinks: queues })
    }

    /// Whether allowed calls are recorded too.
    pub fn wants_all(&self) -> bool {
        self.decisions == Decisions::All
    }

    /// Writes a record of a decision.
    pub fn record(&self, record: Record) {
        self.put(Entry::Decision(record), self.when_full);
    }

    /// Writes a record of a call that we refuse.
    pub fn refusal(&self, refusal: Refusal) {
        self.put(Entry::Refusal(refusal), self.when_full);
    }

    /// Writes a record of another policy that is in force now.
    pub fn reloaded(&self, reloaded: Reloaded) {
        self.put(Entry::Reloaded(reloaded), self.when_full);
    }

    fn put(&self, entry: Entry, when_full: WhenFull) {
        let number = self.count.fetch_add(1, Relaxed) + 1;
        let size = entry.size();
        let entry = Arc::new(entry);
        for queue in &self.sinks {
            if !queue.progress.takes(size, when_full) {
                queue.progress.dropped.fetch_add(1, Relaxed);
            } else if let Some(sender) = &*queue.lines.lock().unwrap_or_else(PoisonError::into_inner) {
                let _ = sender.send((Arc::clone(&entry), number)); // if nobody takes it, nobody waits for it either
            }
        }
    }

    /// Waits until what has been recorded so far is written, for `most` at the most, and says what was not.
    pub fn flush(&self, most: Duration) {
        self.catch_up(most);
        self.say(&self.those_with(Progress::lost));
        for (queue, late) in self.those_with(Progress::late).into_iter().filter(|(queue, _)| !queue.silent) {
            tracing::warn!("{late} of the records still wait for {}", queue.name);
        }
    }

    /// Waits for the sinks, for `most` at the most, and says what was lost: with it, what they have not taken by then.
    pub fn finish(&self, mode: Mode, most: Duration) {
        /// For one more record, where a sink keeps up.
        const A_MOMENT: Duration = Duration::from_millis(500);
        let late = self.catch_up(most);
        // What still waits has nobody left to write it.
        let lost = self.those_with(|progress| progress.lost() + progress.late());
        self.say(&lost);
        if !lost.is_empty() {
            let lost = lost.iter().map(|(queue, count)| (queue.name.clone(), *count)).collect();
            // No sink is waited for any more, whatever the policy says: there is no workload that could run ahead of it.
            self.put(Entry::Lost(mode, lost), WhenFull::Drop);
            let deadline = Instant::now() + A_MOMENT;
            for (queue, _) in self.sinks.iter().zip(late).filter(|(_, late)| !late) {
                queue.progress.catches_up(deadline);
            }
        }
        for queue in &self.sinks {
            queue.lines.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }

    /// Waits for the sinks. Which of them have not written all in time.
    fn catch_up(&self, most: Duration) -> Vec<bool> {
        let deadline = Instant::now() + most;
        self.sinks.iter().map(|queue| !queue.progress.catches_up(deadline)).collect()
    }

    /// The sinks for which this counts something, and how much.
    fn those_with(&self, count: impl Fn(&Progress) -> u64) -> Vec<(&Queue, u64)> {
        self.sinks.iter().map(|queue| (queue, count(&queue.progress))).filter(|(_, count)| *count > 0).collect()
    }

    /// Says on our own standard error what was lost: where a sink is the only one, it cannot be said there.
    fn say(&self, lost: &[(&Queue, u64)]) {
        for (queue, count) in lost.iter().filter(|(queue, _)| !queue.silent) {
            let before = queue.progress.said.fetch_max(*count, Relaxed);
            let (name, why) = (&queue.name, queue.progress.why_lost());
            match count.saturating_sub(before) {
                0 => {}
                1 if before == 0 => tracing::warn!("1 record did not reach {name} ({why})"),
                count if before == 0 => tracing::warn!("{count} records did not reach {name} ({why})"),
                count => tracing::warn!("{count} more did not reach {name} ({why})"),
            }
        }
    }
}

/// Held by the thread that takes records.
struct Taking(Arc<Progress>);

impl Drop for Taking {
    fn drop(&mut self) {
        self.0.waiting().over = true;
        self.0.less.notify_all();
    }
}

/// Where records go, opened.
pub struct Sinks(Vec<Place>);

/// A sink cannot be used.
#[derive(Debug)]
pub struct SinkError {
    /// Which of the policy's.
    pub index: usize,
    /// What is wrong with it.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Sinks {
    /// Opens the sinks, and keeps the descriptors of `fd:` sinks from the workload. A socket is connected to when there is a
    /// record, and again if that fails.
    ///
    /// # Errors
    /// A file cannot be opened, or there is no such descriptor.
    pub fn open(settings: &AuditSettings) -> Result<Self, SinkError> {
        let open =
            settings.sinks.iter().enumerate().map(|(index, sink)| {
                Place::open(&sink.to).map_err(|(message, hint)| SinkError { index, message, hint })
            });
        let sinks = Self(open.collect::<Result<_, _>>()?);
        // Only now, since two may be the same.
        for (index, sink) in settings.sinks.iter().enumerate() {
            if let SinkTarget::Fd(number) = sink.to {
                fcntl(crate::sys::process::borrow(number), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|error| {
                    let message =
                        format!("the audit sink fd:{number} cannot be kept from the command: {}", error.desc());
                    SinkError { index, message, hint: None }
                })?;
            }
        }
        Ok(sinks)
    }
}

/// Writes one sink's lines, on a thread of its own.
struct Writer {
    name: String,
    place: Place,
    /// Whether a line that cannot be written is tried again until it can: the policy wants no record lost.
    persistent: bool,
    /// Whether it may sleep while the queue fills.
    naps: bool,
    text: bool,
    colour: bool,
    /// Whether it says nothing about a record that cannot be written, or has said it.
    silent: bool,
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
            self.take(&first, progress);
            while let Ok(next) = lines.try_recv() {
                self.take(&next, progress);
            }
            if self.naps {
                std::thread::sleep(Self::NAP);
            }
        }
    }

    fn take(&mut self, (entry, number): &Item, progress: &Progress) {
        let line = entry.line(*number, self.text, self.colour);
        if let Err(error) = self.place.write(line.as_bytes()) {
            let why = description(&error);
            progress.fails(&why);
            if self.persistent {
                self.persist(line.as_bytes(), &why);
            } else {
                progress.failed.fetch_add(1, Relaxed);
                if !self.silent {
                    tracing::warn!("a record cannot be written to {} ({why}); what is lost is counted", self.name);
                    self.silent = true;
                }
            }
        }
        progress.is_through(entry.size());
    }

    fn persist(&mut self, line: &[u8], why: &str) {
        if !self.silent {
            tracing::warn!("a record cannot be written to {} ({why}); it will be tried again", self.name);
        }
        let mut pause = Self::FIRST;
        loop {
            std::thread::sleep(pause);
            if self.place.write(line).is_ok() {
                return;
            }
            pause = (pause * 2).min(Self::LONGEST);
        }
    }
}

/// An error as errno(3) has it, without its number.
fn description(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |number| Errno::from_raw(number).desc().to_owned())
}

enum Place {
    Stderr(Tail),
    File(File, Tail),
    Unix(PathBuf, Option<Connection>),
}

/// How the place's last line ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tail {
    Whole,
    /// A disk was full, say, and what comes next has to begin a line of its own.
    Torn,
}

enum Connection {
    Stream(UnixStream),
    Datagram(UnixDatagram),
}

impl Place {
    /// Opens it, or says what is wrong, and what to do about it.
    fn open(target: &SinkTarget) -> Result<Self, (String, Option<String>)> {
        match target {
            SinkTarget::Stderr => Ok(Self::Stderr(Tail::Whole)),
            SinkTarget::File(path) => {
                let mut options = OpenOptions::new();
                // Whoever may change a link could choose what is written to, by us.
                // Nobody is waited for who might read a FIFO one day.
                let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
                options.append(true).create(true).mode(0o600).custom_flags(flags);
                let file = options.open(path).map_err(|error| {
                    let linked = error.raw_os_error() == Some(libc::ELOOP) && path.is_symlink();
                    let why = if linked { "symbolic links are not followed".to_owned() } else { description(&error) };
                    (format!("cannot open the audit sink {target}: {why}"), hint(path, &error, linked))
                })?;
                let blocking = fcntl(&file, FcntlArg::F_GETFL).and_then(|flags| {
                    let flags = OFlag::from_bits_retain(flags) & !OFlag::O_NONBLOCK;
                    fcntl(&file, FcntlArg::F_SETFL(flags))
                });
                blocking.map_err(|error| (format!("cannot open the audit sink {target}: {}", error.desc()), None))?;
                let tail = tail_of(&file, path);
                Ok(Self::File(file, tail))
            }
            SinkTarget::Fd(number) => {
                let fd = crate::sys::process::borrow(*number);
                // What was inherited is not close-on-exec, and what we have opened ourselves is.
                let flags = fcntl(fd, FcntlArg::F_GETFD).map(FdFlag::from_bits_retain);
                if !flags.is_ok_and(|flags| !flags.contains(FdFlag::FD_CLOEXEC)) {
                    let message = format!("the audit sink {target} is not an open descriptor");
                    let hint = format!("open it where callgate is started: `callgate … {number}>>FILE`");
                    return Err((message, Some(hint)));
                }
                let mode = fcntl(fd, FcntlArg::F_GETFL).unwrap_or_default();
                if mode & libc::O_ACCMODE == libc::O_RDONLY {
                    return Err((format!("the audit sink {target} is open for reading only"), None));
                }
                match crate::sys::process::duplicate(*number) {
                    Ok(fd) => Ok(Self::File(File::from(fd), Tail::Whole)),
                    Err(error) => Err((format!("cannot use the audit sink {target}: {}", description(&error)), None)),
                }
            }
            // Connecting waits for a listener that is busy, and is left to the writer's thread.
            SinkTarget::Unix(path) => Ok(Self::Unix(path.clone(), None)),
        }
    }

    fn is_terminal(&self) -> bool {
        match self {
            Self::Stderr(_) => io::stderr().is_terminal(),
            Self::File(file, _) => file.is_terminal(),
            Self::Unix(..) => false,
        }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::Stderr(tail) => write_patiently(&io::stderr(), tail, line),
            Self::File(file, tail) => write_patiently(file, tail, line),
            Self::Unix(path, connection) => {
                // A collector that was started again gets a second try.
                let mut tried_again = false;
                loop {
                    let connected = match connection.take() {
                        Some(connected) => connected,
                        None => connect(path)?,
                    };
                    let sent = match &connected {
                        Connection::Stream(stream) => (&*stream).write_all(line),
                        Connection::Datagram(socket) => socket.send(line.trim_ascii_end()).map(drop),
                    };
                    match sent {
                        Ok(()) => {
                            *connection = Some(connected);
                            return Ok(());
                        }
                        Err(error) if tried_again => return Err(error),
                        Err(_) => tried_again = true,
                    }
                }
            }
        }
    }
}

/// What to write instead of a file that cannot be opened.
fn hint(path: &Path, error: &io::Error, linked: bool) -> Option<String> {
    let name = path.to_string_lossy();
    let descriptor = ["/dev/fd/", "/proc/self/fd/"].iter().find_map(|directory| name.strip_prefix(directory));
    let descriptor = descriptor.or(match &*name {
        "/dev/stdin" => Some("0"),
        "/dev/stdout" => Some("1"),
        "/dev/stderr" => Some("2"),
        _ => None,
    });
    match (descriptor, error.raw_os_error()) {
        (Some("1"), _) => Some(
            "records are never mixed into the command's standard output; write \"stderr\", or open another descriptor \
             for them, 3, and write \"fd:3\""
                .to_owned(),
        ),
        (Some("2"), _) => Some("write \"stderr\"".to_owned()),
        (Some(number), _) if number != "0" => Some(format!("write \"fd:{number}\"")),
        _ if linked => Some(
            "name the file that it leads to: whoever may change the link could have records written into any file"
                .to_owned(),
        ),
        (_, Some(libc::ENOENT)) => Some(format!("make the directory {} first", path.parent()?.display())),
        (_, Some(libc::ENXIO)) => Some(format!("for a socket write \"unix:{name}\"; a FIFO has to have a reader")),
        _ => None,
    }
}

/// Where records are appended to what somebody has left behind, who was killed or found the disk full.
fn tail_of(file: &File, path: &Path) -> Tail {
    let last = file.metadata().ok().filter(|metadata| metadata.is_file() && metadata.len() > 0).and_then(|metadata| {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let readable = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
        let mut last = [0];
        readable.read_exact_at(&mut last, metadata.len() - 1).ok()?;
        Some(last)
    });
    if last.is_some_and(|last| last != *b"\n") { Tail::Torn } else { Tail::Whole }
}

/// Writes all of it, also where somebody who shares the open file has made it non-blocking.
fn write_patiently<F>(to: &F, tail: &mut Tail, line: &[u8]) -> io::Result<()>
where
    F: AsFd,
{
    let apart;
    let mut bytes = line;
    if *tail == Tail::Torn {
        apart = [b"\n", line].concat();
        bytes = &apart;
    }
    while !bytes.is_empty() {
        match nix::unistd::write(to, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                *tail = if bytes[count - 1] == b'\n' { Tail::Whole } else { Tail::Torn };
                bytes = &bytes[count..];
            }
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
    match UnixStream::connect(path) {
        Ok(stream) => Ok(Connection::Stream(stream)),
        // It is there, and of another type (unix_find_bsd, net/unix/af_unix.c).
        Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => {
            let socket = UnixDatagram::unbound()?;
            socket.connect(path)?;
            Ok(Connection::Datagram(socket))
        }
        Err(error) => Err(error),
    }
}
