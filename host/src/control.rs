//! Orders to a running supervisor: `callgatectl reload`.
//!
//! A socket of type `SOCK_SEQPACKET` with an abstract name, which takes no place in a file system. Anybody in the network
//! namespace can connect to it, the workload too, so who gives an order is found out: processes of the workload are under
//! one seccomp filter more than the supervisor, for ever, and others are not. The order must come from the process that was
//! looked at: it is made after a word that the supervisor said while it held on to that process, and the kernel says from
//! whom it comes (`SCM_CREDENTIALS`, unix(7)).
//!
//! Where connections are governed it is a supervisor that makes them, and the kernel takes it for the peer. So none is made
//! to such a name ([`is_name`]), and from itself the supervisor takes no orders.
//!
//! Both ends stand here. May depend on `sys`, `event`, `reload` and `intercept::caller`.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::{PassCred, PeerCredentials, ReceiveTimeout, SendTimeout};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    UnixCredentials, accept4, bind, connect, getsockopt, listen, recvmsg, sendmsg, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::{Deserialize, Serialize};

use crate::event::Address;
use crate::intercept::caller::Status;
use crate::intercept::path::View;
use crate::reload::Handed;
use crate::sys::pidfd::{self, Target};

/// The longest message in either direction.
const LENGTH: usize = 64 << 10;
/// How many descriptors a message may carry (`SCM_MAX_FD`, include/net/scm.h).
const DESCRIPTORS: usize = 253;
/// How long the other side is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long, while it is not known yet whether that is a supervisor at all.
const QUEUE: Duration = Duration::from_secs(1);

/// What a supervisor can be asked to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Order {
    /// To read its policy again.
    Reload,
    /// To take this policy. The files come as descriptors: the policy's first, then those of the plugins in their order.
    Take { path: PathBuf, plugins: Vec<PathBuf> },
}

#[derive(Debug, Serialize, Deserialize)]
struct Message {
    word: String,
    order: Order,
}

/// What came of it, in words.
type Reply = Result<String, String>;

/// What the supervisor is asked for.
#[derive(Debug)]
pub enum Request {
    /// To read its policy again.
    Reload,
    /// To take this one.
    Take(Handed),
}

/// The supervisor's end.
#[derive(Debug)]
pub struct Control {
    socket: OwnedFd,
}

impl Control {
    /// Takes the name of this process.
    ///
    /// # Errors
    /// The kernel's; `EADDRINUSE` if somebody else has it.
    pub fn open() -> Result<Self> {
        let socket =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).context("no socket")?;
        let name = format!("{}{}", names()?, std::process::id());
        bind(socket.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?).context("cannot bind the socket")?;
        listen(&socket, Backlog::new(16)?)?;
        Ok(Self { socket })
    }

    /// Serves one after the other, for as long as the process lives. `filters`: under how many seccomp filters everything in
    /// the workload is.
    pub fn serve(&self, view: &View, filters: u32, obey: impl Fn(Request) -> Result<String>) {
        loop {
            let Ok(peer) = accept4(self.socket.as_raw_fd(), SockFlag::SOCK_CLOEXEC) else {
                std::thread::sleep(Duration::from_millis(100)); // descriptors have run out, say
                continue;
            };
            let peer = crate::sys::process::adopt(peer);
            if let Err(error) = converse(&peer, view, filters, &obey) {
                tracing::debug!("control: {error:#}");
            }
        }
    }
}

fn converse(peer: &OwnedFd, view: &View, filters: u32, obey: impl Fn(Request) -> Result<String>) -> Result<()> {
    be_patient(peer)?;
    setsockopt(peer, PassCred, &true)?;
    let pid = getsockopt(peer, PeerCredentials)?.pid();
    // A pid of 0: in no pid namespace of ours.
    let pid = u32::try_from(pid).ok().filter(|pid| *pid > 0).context("a peer from elsewhere")?;
    let held = pidfd::open(pid, Target::Process)?;
    let status = Status::of(view, pid)?;
    // What we have connected ourselves, we have connected for the workload.
    let outside = pid != std::process::id() && status.filters.is_some_and(|theirs| theirs < filters);
    if !outside || !allowed(&status) {
        tracing::warn!("process {pid} of the workload tried to control the supervisor");
        return answer(peer, &Err("a process of the workload may not do that".to_owned()));
    }
    let word = word()?;
    send(peer, word.as_bytes(), &[])?;
    let (bytes, mut files, from) = receive(peer)?;
    ensure!(from == Some(pid), "the order comes from process {from:?}, not {pid}");
    ensure!(is_alive(&held), "process {pid} is gone");
    let reply = match serde_json::from_slice::<Message>(&bytes) {
        Err(error) => Err(format!("an order that is not understood: {error}")),
        Ok(message) if message.word != word => Err("the order does not begin with the word".to_owned()),
        Ok(Message { order: Order::Reload, .. }) => obey(Request::Reload).map_err(|error| format!("{error:#}")),
        Ok(Message { order: Order::Take { plugins, .. }, .. }) if files.len() != plugins.len() + 1 => {
            Err(format!("{} files came, {} are named", files.len(), plugins.len() + 1))
        }
        Ok(Message { order: Order::Take { path, plugins }, .. }) => {
            let policy = files.remove(0);
            let handed = Handed { path, policy, plugins: plugins.into_iter().zip(files).collect() };
            obey(Request::Take(handed)).map_err(|error| format!("{error:#}"))
        }
    };
    answer(peer, &reply)
}

/// Root, or who the supervisor is.
fn allowed(status: &Status) -> bool {
    status.identity.uid == 0 || status.identity.uid == nix::unistd::geteuid().as_raw()
}

fn is_alive(process: &OwnedFd) -> bool {
    poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(0)
}

/// Something that nobody can know beforehand.
fn word() -> Result<String> {
    let random = crate::sys::process::random::<16>().context("no random numbers")?;
    Ok(hex::encode(random))
}

fn answer(peer: &OwnedFd, reply: &Reply) -> Result<()> {
    let mut bytes = serde_json::to_vec(reply)?;
    if bytes.len() > LENGTH {
        bytes = serde_json::to_vec(&Reply::Err("the answer is too long to be sent".to_owned()))?;
    }
    send(peer, &bytes, &[])
}

/// Asks the supervisor with this process id, or the only one there is. `policy`: the one that it is to take, instead of
/// reading its own again. Returns what it says of it.
///
/// # Errors
/// There is none, or several; or it refuses, and says why.
pub fn ask(supervisor: Option<u32>, policy: Option<Handed>) -> Result<String> {
    let pid = match supervisor {
        Some(pid) => pid,
        None => only_one()?,
    };
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    be_patient(&socket)?;
    let name = format!("{}{pid}", names()?);
    connect(socket.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)
        .with_context(|| format!("process {pid} is no supervisor that could be asked"))?;
    let server = getsockopt(&socket, PeerCredentials)?.pid();
    ensure!(u32::try_from(server) == Ok(pid), "the socket of process {pid} belongs to process {server}");
    let (word, _, _) = receive(&socket)?;
    let word = match serde_json::from_slice::<Reply>(&word) {
        Ok(Err(refusal)) => bail!("{refusal}"),
        _ => String::from_utf8(word)?,
    };
    let (order, files) = match policy {
        None => (Order::Reload, Vec::new()),
        Some(Handed { path, policy, plugins }) => {
            let (paths, files): (Vec<PathBuf>, Vec<File>) = plugins.into_iter().unzip();
            (Order::Take { path, plugins: paths }, [policy].into_iter().chain(files).collect())
        }
    };
    ensure!(files.len() <= DESCRIPTORS, "a policy of {} plugins; {} can be handed over", files.len(), DESCRIPTORS - 1);
    send(&socket, &serde_json::to_vec(&Message { word, order })?, &files)?;
    // Plugins are compiled first.
    setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(120))?;
    let (reply, _, _) = receive(&socket).context("the supervisor does not answer")?;
    serde_json::from_slice::<Reply>(&reply)
        .context("the supervisor's answer is not understood")?
        .map_err(anyhow::Error::msg)
}

/// What the names of all supervisors of this pid namespace begin with. Containers may share a network namespace.
fn names() -> Result<String> {
    let namespace = nix::sys::stat::stat("/proc/self/ns/pid").map_or(0, |stat| stat.st_ino);
    Ok(format!("{NAMES}{namespace}/"))
}

/// What the names of all supervisors begin with.
const NAMES: &str = "callgate/control/";

/// Whether an address is a supervisor's.
pub fn is_name(address: &Address) -> bool {
    matches!(address, Address::UnixAbstract { name } if name.starts_with(NAMES))
}

/// The only supervisor that there is. Names are anybody's to take, a workload's too. So of several it is asked who listens
/// there: a supervisor's name has its own process id in it. Of those that are left it is who is under the fewest seccomp
/// filters, as everything in a workload is under one more than its supervisor.
fn only_one() -> Result<u32> {
    let sockets = std::fs::read_to_string("/proc/net/unix").context("cannot look for supervisors")?;
    let begin = names()?;
    let mut named: Vec<u32> = sockets
        .lines()
        .filter_map(|line| line.split_whitespace().last()?.strip_prefix('@')?.strip_prefix(&begin)?.parse().ok())
        .filter(|pid| *pid != std::process::id())
        .collect();
    named.sort_unstable();
    named.dedup();
    if let [one] = named.as_slice() {
        return Ok(*one);
    }
    named.retain(|pid| Path::new(&format!("/proc/{pid}")).exists());
    let (mut believed, mut silent) = (Vec::new(), named);
    let patience = Instant::now() + QUEUE;
    loop {
        silent.retain(|pid| match listens(&begin, *pid) {
            Ok(who) if u32::try_from(who) == Ok(*pid) => {
                believed.push(*pid);
                false
            }
            answer => answer == Err(Errno::EAGAIN),
        });
        if silent.is_empty() || Instant::now() > patience {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    // One whose queue is full may be the supervisor, and then nobody under more filters than that is.
    let fewest = believed.iter().chain(&silent).map(|pid| filters(*pid)).min();
    believed.retain(|pid| Some(filters(*pid)) == fewest);
    match (believed.as_slice(), silent.as_slice()) {
        ([one], _) => Ok(*one),
        ([], []) => bail!("there is no supervisor here"),
        ([], silent) => bail!("nobody answers for {silent:?}; name the supervisor with --pid"),
        (several, _) => bail!("there are several supervisors, {several:?}; name one with --pid"),
    }
}

/// Which process listens at the name of this one. `EAGAIN`: others wait there already.
fn listens(names: &str, pid: u32) -> nix::Result<i32> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new_abstract(format!("{names}{pid}").as_bytes())?)?;
    Ok(getsockopt(&socket, PeerCredentials)?.pid())
}

/// Under how many seccomp filters a process is, as far as the kernel says (Linux 5.9).
fn filters(pid: u32) -> u32 {
    let directory = File::open(format!("/proc/{pid}")).ok();
    directory.and_then(|directory| Status::read(directory.as_fd()).ok()?.filters).unwrap_or(0)
}

fn be_patient(socket: &OwnedFd) -> Result<()> {
    let most = TimeVal::seconds(PATIENCE.as_secs() as i64);
    setsockopt(socket, ReceiveTimeout, &most)?;
    setsockopt(socket, SendTimeout, &most)?;
    Ok(())
}

fn send(socket: &OwnedFd, bytes: &[u8], files: &[File]) -> Result<()> {
    ensure!(bytes.len() <= LENGTH, "a message of {} bytes; it takes {LENGTH}", bytes.len());
    let descriptors: Vec<i32> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&descriptors)];
    let control = if files.is_empty() { &control[..0] } else { &control[..] };
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// A message, the files that came with it, and the process that sent it (where the socket wants to know).
fn receive(socket: &OwnedFd) -> Result<(Vec<u8>, Vec<File>, Option<u32>)> {
    let mut bytes = vec![0; LENGTH];
    let mut space = nix::cmsg_space!([i32; DESCRIPTORS], UnixCredentials);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let (mut files, mut from) = (Vec::new(), None);
    for control in message.cmsgs()? {
        match control {
            ControlMessageOwned::ScmRights(descriptors) => {
                files.extend(descriptors.into_iter().map(|fd| File::from(crate::sys::process::adopt(fd))));
            }
            ControlMessageOwned::ScmCredentials(credentials) => from = u32::try_from(credentials.pid()).ok(),
            _ => {}
        }
    }
    let (length, cut) = (message.bytes, message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC));
    ensure!(length > 0, "the other side is gone");
    ensure!(!cut, "a message that is too long");
    bytes.truncate(length);
    Ok((bytes, files, from))
}
