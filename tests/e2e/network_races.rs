//! Attacks on the network rules by a hand that changes what a call points to while it is under way. Each is first shown to
//! work: without a supervisor, what was checked before the call is not what the call did.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::sync::Mutex;

use serde_json::json;

use crate::harness::{Fixture, Outcome, run};
use crate::network::governed;
use crate::older_kernels;

/// They need the machine's processors, so one at a time.
static TURN: Mutex<()> = Mutex::new(());

struct Attack {
    /// Everything is here, outside of the policy.
    place: Fixture,
    refused: (TcpListener, UdpSocket),
    allowed: (TcpListener, UdpSocket),
    unix: Vec<UnixListener>,
}

impl Attack {
    fn new() -> Self {
        let place = Fixture::allowing(&[]);
        let pair = || loop {
            let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()) {
                udp.set_nonblocking(true).unwrap();
                tcp.set_nonblocking(true).unwrap();
                break (tcp, udp);
            }
        };
        let (refused, allowed) = (pair(), pair());
        let unix = ["allowed", "refused"].map(|name| {
            std::fs::create_dir(place.path(name)).unwrap();
            let listener = UnixListener::bind(place.path(name).join("s.sock")).unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        });
        place.compile("races", include_str!("programs/network_races.c"), &["-w"]);
        Self { place, refused, allowed, unix: unix.into() }
    }

    /// Runs it for a while. How many rounds there were, and how often something forbidden was reached.
    fn run(&self, mut command: Command, mode: &str) -> (u64, u64) {
        let port = |pair: &(TcpListener, UdpSocket)| pair.1.local_addr().unwrap().port().to_string();
        let listens = mode == "dup2-listen";
        let good = if listens { "18450".to_owned() } else { port(&self.allowed) };
        command.arg(self.place.path("races")).args([mode, &port(&self.refused), &good, "1"]);
        for link in ["way", "other"] {
            let _ = std::fs::remove_file(self.place.path(link));
        }
        let done = std::sync::atomic::AtomicBool::new(false);
        let (outcome, packets): (Outcome, u64) = std::thread::scope(|scope| {
            // The queues must not fill up.
            let drain = scope.spawn(|| {
                let mut packets = 0;
                loop {
                    let last = done.load(std::sync::atomic::Ordering::SeqCst);
                    while self.refused.1.recv(&mut [0; 8]).is_ok() {
                        packets += 1;
                    }
                    while self.allowed.1.recv(&mut [0; 8]).is_ok() {}
                    while self.allowed.0.accept().is_ok() || self.refused.0.accept().is_ok() {}
                    while self.unix.iter().any(|listener| listener.accept().is_ok()) {}
                    if last {
                        break packets;
                    }
                    std::thread::sleep(std::time::Duration::from_micros(200));
                }
            });
            let outcome = run(command.current_dir(self.place.path("")));
            done.store(true, std::sync::atomic::Ordering::SeqCst);
            (outcome, drain.join().unwrap())
        });
        assert!(outcome.status.success(), "{outcome:?}");
        let numbers: Vec<u64> = outcome.stdout.split_whitespace().map(|number| number.parse().unwrap()).collect();
        (numbers[0], numbers[1] + packets)
    }
}

fn never_wins(modes: &[&str]) {
    never_wins_under(modes, Fixture::callgate);
}

fn never_wins_under(modes: &[&str], callgate: impl Fn(&Fixture) -> Command) {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for mode in modes {
        let attack = Attack::new();
        // On a busy machine the two hands do not always meet.
        let works = (0..10).any(|_| attack.run(Command::new("env"), mode).1 > 0);
        assert!(works, "{mode}: the attack does not even work without a supervisor");
        let directory = attack.place.path("").canonicalize().unwrap();
        let unix = json!({ "unix": format!("{}/allowed/*", directory.display()) });
        let allowed = attack.allowed.1.local_addr().unwrap().port();
        // For the descriptors: UDP is allowed, and TCP to the same port is not.
        let protocol = if *mode == "dup2-connect" { json!("udp") } else { json!(null) };
        let mut outbound = json!({ "to": "127.0.0.1", "ports": allowed });
        if !protocol.is_null() {
            outbound["protocol"] = protocol;
        }
        let fixture = governed(json!({ "outbound": [outbound, unix], "inbound": [{ "ports": 18450 }, unix] }));
        let (mut rounds, mut reached) = (0, 0);
        for _ in 0..10 {
            let (more, hits) = attack.run(callgate(&fixture), mode);
            (rounds, reached) = (rounds + more, reached + hits);
            if rounds > 50 {
                break;
            }
        }
        assert_eq!(reached, 0, "{mode}: in {rounds} rounds");
        assert!(rounds > 50, "{mode}: only {rounds} rounds");
    }
}

#[test]
fn an_address_that_is_rewritten_during_a_connect_leads_nowhere_else() {
    never_wins(&["thread", "process", "memfile", "fastopen"]);
}

#[test]
fn an_address_that_is_rewritten_during_a_send_leads_nowhere_else() {
    never_wins(&["sendto", "pointer", "second", "addrform"]);
}

#[test]
fn a_descriptor_that_is_swapped_during_a_call_is_not_the_one_that_is_used() {
    never_wins(&["dup2-connect", "dup2-listen"]);
}

#[test]
fn a_path_that_is_rewritten_or_redirected_leads_nowhere_else() {
    never_wins(&["path", "link-connect", "link-bind"]);
}

/// Where a signal ends a call and the kernel starts it again, the answer that was kept for it must not become that of
/// another.
#[test]
fn calls_that_signals_interrupt_on_older_kernels_lead_nowhere_else() {
    never_wins_under(&["thread", "process", "sendto", "pointer", "second", "dup2-connect", "dup2-listen"], |fixture| {
        let mut command = older_kernels::callgate(fixture, Some(&older_kernels::older(fixture)));
        command.env("STORM_US", "200");
        command
    });
}
