//! Facts about the event at hand that plugins may ask for, from the live process.
//!
//! They are asked for in the midst of a decision, for which all others wait. So each of them is found out without asking
//! anything that the workload can keep from answering, or else by an errand that is waited for only so long. A digest of a
//! large file takes long however it is read; where one will be asked for, it is taken before ([`LiveFacts::look_ahead`]).
//!
//! May depend on `sys`, `event`, and the trait of `decide` that it implements.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, SFlag, major, minor};

use super::caller::Caller;
use super::callers::Callers;
use super::errands::{Errands, Patience};
use super::exec::{self, Program};
use super::network::{Held, known};
use super::path::View;
use super::sockets;
use crate::decide::{Facts, FileRole, Stream};
use crate::event::{Action, Address, File, Subject};
use crate::sys::socket;

/// Up to this size a digest takes no longer than other things that a decision waits for.
const SMALL: u64 = 64 << 10;

/// How much of the environment is looked at that a process was started with.
const ENVIRONMENT: u64 = 64 << 10;

/// What is the same for all events.
#[derive(Debug, Default)]
pub struct Background {
    /// When the workload was started, in milliseconds since the Unix epoch.
    pub started_ms: u64,
    /// The names of addresses.
    pub names: Names,
    /// Who reads what may be held.
    pub errands: Errands,
    /// Which digests are asked for.
    pub habits: Habits,
}

/// What is known of which files' digests plugins ask for.
#[derive(Debug, Default)]
pub struct Habits {
    /// Whether any was ever asked for.
    asks: AtomicBool,
    /// Files, by [`key`], of which none was asked for at their last exec. Whatever else there is may be asked for.
    unasked: Mutex<HashSet<u64>>,
}

impl Habits {
    /// How many files are remembered. Then all are forgotten, which costs each of them one digest in vain.
    const MOST: usize = 4096;

    fn unasked(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.unasked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The files of an event that are not small, by [`key`]; none as long as nobody asks for digests.
    fn large(&self, action: &Action) -> Vec<(FileRole, u64)> {
        if !self.asks.load(SeqCst) {
            return Vec::new();
        }
        let large = FileRole::files(action).filter(|(_, file)| file.size > SMALL);
        large.map(|(role, file)| (role, key(role, file))).collect()
    }

    fn expects(&self, file: u64) -> bool {
        !self.unasked().contains(&file)
    }

    fn was_asked(&self, file: Option<u64>) {
        self.asks.store(true, SeqCst);
        if let Some(file) = file {
            self.unasked().remove(&file);
        }
    }

    fn was_not_asked(&self, file: u64) {
        let mut unasked = self.unasked();
        if unasked.len() == Self::MOST {
            unasked.clear();
        }
        unasked.insert(file);
    }
}

/// What tells a file from others, in this role and by this path: on that it depends whether a plugin asks for its digest.
fn key(role: FileRole, file: &File) -> u64 {
    let mut hasher = DefaultHasher::new();
    (role, file.device, file.inode, &file.path).hash(&mut hasher);
    hasher.finish()
}

/// The names that `/etc/hosts` has for addresses.
#[derive(Debug, Default)]
pub struct Names(HashMap<IpAddr, Vec<String>>);

impl Names {
    /// Reads a file as hosts(5) describes it. What is no such line says nothing; a file that is not there likewise.
    pub fn read(path: &str) -> Self {
        Self::parse(&std::fs::read_to_string(path).unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let mut names: HashMap<_, Vec<String>> = HashMap::new();
        for line in text.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            if let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>) {
                names.entry(address.to_canonical()).or_default().extend(words.map(str::to_owned));
            }
        }
        Self(names)
    }

    fn of(&self, address: IpAddr) -> Vec<String> {
        self.0.get(&address).cloned().unwrap_or_default()
    }
}

/// Facts about one event.
pub struct LiveFacts {
    view: Arc<View>,
    callers: Arc<Callers>,
    caller: Arc<Caller>,
    parent: u32,
    background: Arc<Background>,
    program: Option<Arc<Program>>,
    /// The other end's, or the own one.
    address: Option<IpAddr>,
    patience: Mutex<Patience>,
    /// The event's files that are not small, where digests are asked for at all.
    large: Vec<(FileRole, u64)>,
    /// Digests that were taken before anybody asked.
    ahead: Mutex<Vec<Ahead>>,
    digests: Mutex<Vec<(FileRole, String)>>,
    environment: OnceLock<Result<Environment, String>>,
}

/// A digest that was taken before anybody asked.
struct Ahead {
    role: FileRole,
    /// Of this file, by its [`key`].
    file: u64,
    digest: Result<String, String>,
    /// Whether somebody has asked.
    used: bool,
}

/// Variables, and whether there are more.
type Environment = (Vec<Vec<u8>>, bool);

impl LiveFacts {
    /// Facts about what `caller`, a child of `parent`, asks for; `program` for an exec.
    pub fn new(
        view: &Arc<View>,
        callers: &Arc<Callers>,
        background: &Arc<Background>,
        caller: &Arc<Caller>,
        parent: u32,
        action: &Action,
        program: Option<Arc<Program>>,
    ) -> Self {
        Self {
            view: Arc::clone(view),
            callers: Arc::clone(callers),
            caller: Arc::clone(caller),
            parent,
            background: Arc::clone(background),
            program,
            address: ip_address(action),
            patience: Mutex::default(),
            large: background.habits.large(action),
            ahead: Mutex::default(),
            digests: Mutex::default(),
            environment: OnceLock::new(),
        }
    }

    /// Whether [`Self::look_ahead`] has something to do, which then takes long.
    pub fn will_look_ahead(&self) -> bool {
        self.program.as_ref().is_some_and(|program| !program.inexecutable)
            && self.large.iter().any(|(_, file)| self.background.habits.expects(*file))
    }

    /// Takes the digests that will be asked for, as far as that can be told, while nobody waits for it but the caller.
    pub fn look_ahead(&self) {
        let Some(program) = &self.program else { return };
        let expected = self.large.iter().filter(|(_, file)| self.background.habits.expects(*file));
        let taken = expected.filter_map(|(role, file)| {
            let digest = exec::digest(&self.view, program.files.get(*role)?).map_err(|error| error.to_string());
            Some(Ahead { role: *role, file: *file, digest, used: false })
        });
        let taken = taken.collect();
        *self.ahead() = taken;
    }

    /// To be called when the decision is made: what was taken in vain is not taken again.
    pub fn decided(&self) {
        for ahead in self.ahead().iter().filter(|ahead| !ahead.used) {
            self.background.habits.was_not_asked(ahead.file);
        }
    }

    fn ahead(&self) -> MutexGuard<'_, Vec<Ahead>> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The digest that was taken before it was asked for, as it is now.
    fn taken_ahead(&self, role: FileRole) -> Option<Result<String, String>> {
        let mut ahead = self.ahead();
        let found = ahead.iter_mut().find(|ahead| ahead.role == role)?;
        found.used = true;
        Some(found.digest.clone())
    }

    /// The digests that were asked for, and so what was decided on.
    pub fn digests(&self) -> Vec<(FileRole, String)> {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Facts for LiveFacts {
    fn ancestors(&self) -> Vec<Subject> {
        self.callers.ancestors(&self.view, self.parent)
    }

    fn digest(&self, role: FileRole) -> Result<String, String> {
        let program = self.program.as_ref().ok_or("the event has no file")?;
        if program.inexecutable {
            return Err("a file that nobody may execute is not looked into".to_owned());
        }
        let file = program.files.get(role).ok_or("the event has no such file")?;
        if let Some((_, known)) = self.digests().into_iter().find(|(of, _)| *of == role) {
            return Ok(known);
        }
        let found = match self.taken_ahead(role) {
            Some(taken) => taken?,
            None => {
                let known = self.large.iter().find(|(of, _)| *of == role);
                self.background.habits.was_asked(known.map(|(_, file)| *file));
                self.digest_now(program, role, file)?
            }
        };
        self.digests.lock().unwrap_or_else(PoisonError::into_inner).push((role, found.clone()));
        Ok(found)
    }

    fn environment(&self, name: &str) -> Result<Option<String>, String> {
        let (variables, cut) = self.environment.get_or_init(|| self.variables()).as_ref().map_err(String::clone)?;
        let value = |entry: &Vec<u8>| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=").map(<[u8]>::to_vec);
        match variables.iter().find_map(value) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
            None if *cut => Err("the environment is longer than what is looked at".to_owned()),
            None => Ok(None),
        }
    }

    fn standard_stream(&self, number: u32) -> Stream {
        if number > 2 {
            return Stream::Unknown;
        }
        let handle = match self.caller.handle(number as i32) {
            Ok(handle) => handle,
            Err(Errno::EBADF) => return Stream::Closed,
            Err(_) => return Stream::Unknown,
        };
        let Ok((file, name)) = self.view.called(handle.as_fd()) else { return Stream::Unknown };
        match SFlag::from_bits_truncate(file.mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFREG | SFlag::S_IFDIR => Stream::File(name),
            SFlag::S_IFIFO => Stream::Pipe,
            SFlag::S_IFSOCK => self.socket(number as i32),
            kind => match readlinkat(self.caller.directory(), format!("fd/{number}").as_str()) {
                Ok(name) => {
                    let name = name.to_string_lossy().into_owned();
                    let is_terminal = kind == SFlag::S_IFCHR && is_terminal(file.special);
                    if is_terminal { Stream::Terminal(name) } else { Stream::Other(name) }
                }
                Err(_) => Stream::Unknown,
            },
        }
    }

    fn names(&self) -> Vec<String> {
        self.address.map(|address| self.background.names.of(address)).unwrap_or_default()
    }

    fn started_ms(&self) -> u64 {
        self.background.started_ms
    }
}

fn ip_address(action: &Action) -> Option<IpAddr> {
    let address = match action {
        Action::Connect(to) | Action::Bind(to) | Action::Listen(to) | Action::Send(to) => &to.address,
        Action::Accept(accepted) => &accepted.peer,
        _ => return None,
    };
    match address {
        Address::Ipv4 { ip, .. } => Some(IpAddr::from(*ip)),
        Address::Ipv6 { ip, .. } => Some(IpAddr::from(*ip)),
        _ => None,
    }
}

/// Whether a character device is a terminal, by its number (admin-guide/devices.txt of the kernel): what it is called is the
/// choice of whoever has mounted it there.
fn is_terminal(device: u64) -> bool {
    const PTMX: u64 = 2; // a terminal's other end
    match major(device) {
        5 => minor(device) != PTMX,
        // Pseudo-terminals; consoles and serial ports; those on USB, of other machines, of hypervisors.
        3 | 136..=143 | 4 | 166 | 188 | 204 | 229 => true,
        _ => false,
    }
}

/// Whether a file is on a file system that was there before the workload, so that this has no hand in reading it.
fn is_of_the_start(view: &View, file: BorrowedFd<'_>) -> bool {
    view.called(file).is_ok_and(|(_, name)| name.starts_with('/'))
}

impl LiveFacts {
    fn digest_now(&self, program: &Arc<Program>, role: FileRole, file: BorrowedFd<'_>) -> Result<String, String> {
        let found = if is_of_the_start(&self.view, file) {
            exec::digest(&self.view, file)
        } else {
            let (view, program) = (Arc::clone(&self.view), Arc::clone(program));
            self.send(move || program.files.get(role).map(|file| exec::digest(&view, file)))?.ok_or("it is gone")?
        };
        found.map_err(|error| error.to_string())
    }

    fn send<T: Send + 'static>(&self, errand: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
        let mut patience = self.patience.lock().unwrap_or_else(PoisonError::into_inner);
        self.background.errands.run(&mut patience, errand).map_err(|late| late.to_string())
    }

    /// The environment that the new program gets; or, where no program is to be run, that the process was started with.
    fn variables(&self) -> Result<Environment, String> {
        let caller = Arc::clone(&self.caller);
        let envp = self.program.as_ref().map(|program| program.environment);
        let found = self.send(move || match envp {
            Some(envp) => exec::environment(&caller, envp),
            None => own_environment(&caller),
        })?;
        found.map_err(|errno| format!("the environment cannot be read: {errno}"))
    }

    fn socket(&self, number: i32) -> Stream {
        let Ok(held) = Held::take(&self.caller, number, |socket| sockets::kind(socket)) else { return Stream::Unknown };
        let peer = socket::peer_address(&held.fd).ok().map(|peer| known(held.socket.family, &peer));
        Stream::Socket { socket: held.socket, peer }
    }
}

fn own_environment(caller: &Caller) -> Result<Environment, Errno> {
    let file = openat(caller.directory(), "environ", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut block = Vec::new();
    let read = std::fs::File::from(file).take(ENVIRONMENT + 1).read_to_end(&mut block);
    read.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    let cut = block.len() as u64 > ENVIRONMENT;
    Ok((block.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect(), cut))
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::fstat;

    use super::*;

    #[test]
    fn terminals_are_known_by_their_numbers() {
        let device = |name: &str| nix::sys::stat::stat(name).unwrap().st_rdev;
        let terminal = nix::pty::openpty(None, None).unwrap();
        assert!(is_terminal(fstat(&terminal.slave).unwrap().st_rdev));
        for (name, is) in [("/dev/tty", true), ("/dev/null", false), ("/dev/zero", false), ("/dev/ptmx", false)] {
            assert_eq!(is_terminal(device(name)), is, "{name}");
        }
    }

    #[test]
    fn hosts_files_name_addresses() {
        let names = Names::parse(
            "127.0.0.1 localhost me # not this\n\n# nor this\n::1 localhost\n::ffff:127.0.0.1 mapped\nx y\n",
        );
        let loopback: IpAddr = "127.0.0.1".parse().unwrap();
        assert_eq!(names.0[&loopback], ["localhost", "me", "mapped"]);
        assert_eq!(names.0.len(), 2);
    }
}
