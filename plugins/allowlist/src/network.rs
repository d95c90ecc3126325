//! Which addresses may be reached, and on which programs may be reached.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use callgate_sdk::{Accepted, Address, ConfigError, Endpoint, Glob, Object, Socket, Verdict, present};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::addresses::Addresses;
use crate::forms::{OneOrMany, Span, json};
use crate::globs::Globs;

/// Who may be reached, and by whom. What no rule allows is denied, in every family. TCP and UDP sockets may be made, because it
/// is their addresses that are governed; and what ordinary programs cannot do without is allowed unless `netlink_route`,
/// `unix_sockets`, `unix_autobind`, `bind_port_0` or `dissolve` is `false`.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Network")]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What may be connected to and sent to. An event is allowed if one rule matches it.
    #[serde(default)]
    outbound: Vec<Object<OutboundRule>>,
    /// What may be bound and listened on, and by whom it may be reached.
    #[serde(default)]
    inbound: Vec<Object<InboundRule>>,
    /// Other families whose sockets may be used, whatever their address, by name: `netlink`, `packet`, `vsock`, …; `raw` means
    /// IP sockets of that type.
    #[serde(default)]
    #[schemars(with = "Vec<Family>")]
    families: Vec<String>,
    /// Whether a program may ask the kernel for its interfaces and routes (`NETLINK_ROUTE` sockets), as resolvers do.
    #[serde(default = "yes")]
    netlink_route: bool,
    /// Whether sockets of `AF_UNIX` may be made, alone or in pairs (socketpair(2)). Where they go is said by rules; pairs have
    /// no address and go nowhere.
    #[serde(default = "yes")]
    unix_sockets: bool,
    /// Whether a socket of `AF_UNIX` may be given an abstract name of the kernel's choice (unix(7), autobind).
    #[serde(default = "yes")]
    unix_autobind: bool,
    /// Whether a TCP or UDP socket may be bound to port 0, a port of the kernel's choice, as clients do. Who listens there
    /// needs an inbound rule in any case.
    #[serde(default = "yes")]
    bind_port_0: bool,
    /// Whether a socket may be disconnected from its peer: connect(2) to `AF_UNSPEC`, as resolvers do.
    #[serde(default = "yes")]
    dissolve: bool,
}

const fn yes() -> bool {
    true
}

/// Allows what it matches: IP addresses, or sockets of AF_UNIX by `unix` or `unix_abstract`. Without any key: every IP
/// address by TCP and UDP.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(transform = one_kind)]
#[serde(deny_unknown_fields)]
struct OutboundRule {
    /// Addresses or networks of the peer; absent: any.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "OneOrMany<Net>")]
    to: Option<OneOrMany<String>>,
    /// Its ports; absent: any.
    #[serde(default, deserialize_with = "present")]
    ports: Option<OneOrMany<Span<u16>>>,
    /// The protocol; absent: TCP and UDP.
    #[serde(default, deserialize_with = "present")]
    protocol: Option<Protocol>,
    /// The path of an AF_UNIX socket, or a glob.
    #[serde(default, deserialize_with = "present")]
    #[schemars(regex(pattern = "^/"), example = "/run/postgresql/.s.PGSQL.5432")]
    unix: Option<String>,
    /// A name in AF_UNIX's abstract namespace, or a glob, without the leading NUL.
    #[serde(default, deserialize_with = "present")]
    unix_abstract: Option<String>,
}

/// Allows what it matches: local IP addresses, or sockets of AF_UNIX by `unix` or `unix_abstract`. Without any key: every
/// IP address by TCP and UDP.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(transform = one_kind)]
#[serde(deny_unknown_fields)]
struct InboundRule {
    /// Local addresses or networks; absent: any.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "OneOrMany<Net>")]
    on: Option<OneOrMany<String>>,
    /// Local ports; absent: any.
    #[serde(default, deserialize_with = "present")]
    ports: Option<OneOrMany<Span<u16>>>,
    /// The protocol; absent: TCP and UDP.
    #[serde(default, deserialize_with = "present")]
    protocol: Option<Protocol>,
    /// Addresses or networks of peers that may connect; absent: any. Datagrams come from anybody, so a rule with peers is
    /// none for UDP.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "OneOrMany<Net>")]
    from: Option<OneOrMany<String>>,
    /// The path of an AF_UNIX socket, or a glob.
    #[serde(default, deserialize_with = "present")]
    #[schemars(regex(pattern = "^/"), example = "/run/app/*.sock")]
    unix: Option<String>,
    /// A name in AF_UNIX's abstract namespace, or a glob, without the leading NUL.
    #[serde(default, deserialize_with = "present")]
    unix_abstract: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    /// TCP, and multipath TCP.
    Tcp,
    /// UDP.
    Udp,
    /// UDP-Lite.
    Udplite,
    /// SCTP.
    Sctp,
    /// ICMP and ICMPv6 datagram sockets, as ping(8) uses them.
    Icmp,
}

impl Protocol {
    /// All of them, in the order of their numbers.
    pub(crate) const ALL: [Self; 5] = [Self::Tcp, Self::Udp, Self::Udplite, Self::Sctp, Self::Icmp];

    /// As the policy calls it.
    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Udplite => "udplite",
            Self::Sctp => "sctp",
            Self::Icmp => "icmp",
        }
    }
}

/// The section, compiled.
#[derive(Debug)]
pub(crate) struct Network {
    outbound: Rules,
    inbound: Rules,
    /// The inbound rules that let everybody connect.
    open: Addresses,
    /// Those that say who may.
    peers: Vec<Peers>,
    families: Vec<u16>,
    raw: bool,
    spared: Spared,
}

/// What needs no rule.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key of the section")]
struct Spared {
    netlink_route: bool,
    unix_sockets: bool,
    unix_autobind: bool,
    bind_port_0: bool,
    dissolve: bool,
}

/// The rules of one direction, compiled.
#[derive(Debug)]
struct Rules {
    addresses: Addresses,
    paths: Globs,
    names: Globs,
    /// Protocols that some rule names.
    protocols: Vec<Protocol>,
}

/// An inbound rule with peers.
#[derive(Debug)]
struct Peers {
    on: Addresses,
    from: Vec<IpNet>,
}

#[derive(Debug)]
struct Rule {
    matches: Matches,
    /// For inbound rules: who may connect.
    from: Option<Vec<IpNet>>,
}

#[derive(Debug)]
enum Matches {
    Ip { nets: Option<Vec<IpNet>>, ports: Option<Vec<Span<u16>>>, protocol: Option<Protocol> },
    Unix(Glob),
    UnixAbstract(Glob),
}

const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const AF_NETLINK: u16 = 16;
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const SOCK_RAW: u32 = 3;
const SOCK_SEQPACKET: u32 = 5;
const NETLINK_ROUTE: u32 = 0;
/// `AF_…` of include/linux/socket.h, but for those that rules are about.
const FAMILIES: &[(&str, u16)] = &[
    ("ax25", 3),
    ("ipx", 4),
    ("appletalk", 5),
    ("netrom", 6),
    ("bridge", 7),
    ("atmpvc", 8),
    ("x25", 9),
    ("rose", 11),
    ("decnet", 12),
    ("netbeui", 13),
    ("security", 14),
    ("key", 15),
    ("netlink", AF_NETLINK),
    ("packet", 17),
    ("ash", 18),
    ("econet", 19),
    ("atmsvc", 20),
    ("rds", 21),
    ("sna", 22),
    ("irda", 23),
    ("pppox", 24),
    ("wanpipe", 25),
    ("llc", 26),
    ("ib", 27),
    ("mpls", 28),
    ("can", 29),
    ("tipc", 30),
    ("bluetooth", 31),
    ("iucv", 32),
    ("rxrpc", 33),
    ("isdn", 34),
    ("phonet", 35),
    ("ieee802154", 36),
    ("caif", 37),
    ("alg", 38),
    ("nfc", 39),
    ("vsock", 40),
    ("kcm", 41),
    ("qipcrtr", 42),
    ("smc", 43),
    ("xdp", 44),
    ("mctp", 45),
];

impl Network {
    /// Compiles the rules.
    ///
    /// # Errors
    /// An address, a port or a family that is none.
    pub(crate) fn new(config: Config) -> Result<Self, ConfigError> {
        let outbound = config.outbound.into_iter().enumerate().map(|(n, Object(rule))| {
            let at = format!("/network/outbound/{n}");
            let matches = matches(&at, "to", rule.to, rule.ports, rule.protocol, rule.unix, rule.unix_abstract)?;
            Ok(Rule { matches, from: None })
        });
        let outbound = outbound.collect::<Result<Vec<Rule>, ConfigError>>()?;
        let inbound = config.inbound.into_iter().enumerate().map(|(n, Object(rule))| {
            let at = format!("/network/inbound/{n}");
            if let (Some(Protocol::Udp | Protocol::Udplite | Protocol::Icmp), Some(_)) = (rule.protocol, &rule.from) {
                let mut error = ConfigError::at(format!("{at}/from"), "datagrams are received from anybody");
                error.hint = Some("only who may connect can be restricted".to_owned());
                return Err(error);
            }
            let matches = matches(&at, "on", rule.on, rule.ports, rule.protocol, rule.unix, rule.unix_abstract)?;
            Ok(Rule { matches, from: rule.from.map(|from| nets(from, &format!("{at}/from"))).transpose()? })
        });
        let inbound = inbound.collect::<Result<Vec<Rule>, ConfigError>>()?;
        let raw = config.families.iter().any(|name| name == "raw");
        let named = config.families.iter().enumerate().filter(|(_, name)| *name != "raw").map(|(n, name)| {
            FAMILIES.iter().find(|(known, _)| known == name).map(|(_, number)| *number).ok_or_else(|| {
                ConfigError::at(format!("/network/families/{n}"), format!("{name:?} is no family that is known"))
                    .hint(family_meant(name))
            })
        });
        let families = named.collect::<Result<_, _>>()?;
        let peers = inbound.iter().filter_map(Peers::of).collect();
        let open = open(&inbound);
        let (outbound, inbound) = (Rules::of(outbound), Rules::of(inbound));
        let Config { netlink_route, unix_sockets, unix_autobind, bind_port_0, dissolve, .. } = config;
        let spared = Spared { netlink_route, unix_sockets, unix_autobind, bind_port_0, dissolve };
        Ok(Self { outbound, inbound, open, peers, families, raw, spared })
    }

    /// Whether some rule says who may connect.
    pub(crate) fn restricts_peers(&self) -> bool {
        !self.peers.is_empty()
    }

    /// connect and send.
    pub(crate) fn outbound(&self, what: &str, to: &Endpoint) -> Verdict {
        if matches!(to.address, Address::Unspecified) {
            return match self.spared.dissolve || self.without_rule(&to.socket) {
                true => Verdict::allow("network.dissolve"),
                false => not_spared("network.dissolve", format!("{what} with no address is not allowed"), "dissolve"),
            };
        }
        let address = meant(&to.address);
        if self.without_rule(&to.socket) || self.outbound.has(&to.socket, &address) {
            return Verdict::allow("network.outbound");
        }
        denied("outbound", what, "to", &to.socket, &address)
    }

    /// bind. Port 0 is what clients bind; what is listened on is looked at in [`Self::listen`].
    pub(crate) fn bind(&self, to: &Endpoint) -> Verdict {
        if self.without_rule(&to.socket) || self.inbound.has(&to.socket, &to.address) {
            return Verdict::allow("network.inbound");
        }
        let (spared, key) = match &to.address {
            Address::UnixUnnamed => (self.spared.unix_autobind, "unix_autobind"),
            // The kernel takes it for any address and port 0, or refuses it.
            Address::Unspecified => (self.spared.bind_port_0, "bind_port_0"),
            address if port(address) == Some(0) && is_ordinary(&to.socket) => (self.spared.bind_port_0, "bind_port_0"),
            address => return denied("inbound", "bind", "on", &to.socket, address),
        };
        if spared {
            return Verdict::allow("network.inbound");
        }
        not_spared("network.inbound", format!("no rule in network.inbound allows bind {}", show(&to.address)), key)
    }

    /// listen, also on a port that the kernel has chosen or will choose.
    pub(crate) fn listen(&self, on: &Endpoint) -> Verdict {
        // Nobody can connect to what has no name or no connections, and the kernel refuses it.
        let unreachable = matches!(on.address, Address::UnixUnnamed) || on.socket.kind == SOCK_DGRAM;
        if unreachable || self.without_rule(&on.socket) || self.inbound.has(&on.socket, &on.address) {
            return Verdict::allow("network.inbound");
        }
        denied("inbound", "listen", "on", &on.socket, &on.address)
    }

    /// accept.
    pub(crate) fn accept(&self, accepted: &Accepted) -> Verdict {
        let is_ip = matches!(accepted.socket.family, AF_INET | AF_INET6);
        if !is_ip || self.admits(accepted) {
            return Verdict::allow("network.peer");
        }
        let verdict = Verdict::deny(
            "network.peer",
            format!("{} may not connect to {}", show(&accepted.peer), show(&accepted.local)),
        );
        match (rule_for("on", &accepted.socket, &accepted.local), ip(&accepted.peer)) {
            (Some(rule), Some(peer)) => {
                let rule = rule.trim_end_matches('}');
                verdict.hint(format!("add {rule}, \"from\": \"{peer}\"}} to network.inbound"))
            }
            _ => verdict,
        }
    }

    fn admits(&self, accepted: &Accepted) -> bool {
        let here = |addresses: &Addresses| has(addresses, &accepted.socket, &accepted.local);
        let from = |nets: &[IpNet]| ip(&accepted.peer).is_none_or(|peer| nets.iter().any(|net| net.contains(&peer)));
        here(&self.open) || self.peers.iter().any(|peers| here(&peers.on) && from(&peers.from))
    }

    /// socket.
    pub(crate) fn socket(&self, socket: &Socket) -> Verdict {
        if socket.family == AF_UNIX {
            return match self.spared.unix_sockets {
                true => Verdict::allow("network.family"),
                false => not_spared("network.family", "sockets of AF_UNIX are not allowed".to_owned(), "unix_sockets"),
            };
        }
        if is_ordinary(socket) || self.without_rule(socket) {
            return Verdict::allow("network.family");
        }
        let needs = protocol_of(socket);
        let is_ip = matches!(socket.family, AF_INET | AF_INET6);
        let named =
            |protocol| self.outbound.protocols.contains(&protocol) || self.inbound.protocols.contains(&protocol);
        if is_ip && needs.is_some_and(named) {
            return Verdict::allow("network.protocol");
        }
        let what = if is_ip {
            format!("a socket of type {} and protocol {}", socket.kind, socket.protocol)
        } else {
            format!("a socket of {}", family_name(socket.family))
        };
        let verdict = Verdict::deny("network.family", format!("{what} is not allowed by the network rules"));
        match needs {
            Some(protocol) if is_ip => {
                verdict.hint(format!("add {{\"protocol\": \"{}\"}} to network.outbound", protocol.name()))
            }
            _ => with_family_hint(verdict, socket),
        }
    }

    /// Sockets that the policy allows as a whole.
    fn without_rule(&self, socket: &Socket) -> bool {
        let route = socket.family == AF_NETLINK && socket.protocol == NETLINK_ROUTE && self.spared.netlink_route;
        let raw = self.raw && matches!(socket.family, AF_INET | AF_INET6) && socket.kind == SOCK_RAW;
        route || raw || self.families.contains(&socket.family)
    }
}

impl Rules {
    fn of(rules: Vec<Rule>) -> Self {
        let (mut paths, mut names, mut protocols) = (Vec::new(), Vec::new(), Vec::new());
        let mut addresses = Addresses::default();
        for rule in rules {
            match rule.matches {
                Matches::Unix(glob) => paths.push(glob),
                Matches::UnixAbstract(glob) => names.push(glob),
                Matches::Ip { nets, ports, protocol } => {
                    protocols.extend(protocol);
                    let used = protocols_of(protocol, rule.from.is_some());
                    addresses.add(nets.as_deref(), ports.as_deref(), &used);
                }
            }
        }
        addresses.settle();
        protocols.sort_unstable();
        protocols.dedup();
        Self { addresses, paths: Globs::new(paths), names: Globs::new(names), protocols }
    }

    fn has(&self, socket: &Socket, address: &Address) -> bool {
        match address {
            Address::Unix(path) => self.paths.has(path),
            Address::UnixAbstract(name) => self.names.has(name),
            address => has(&self.addresses, socket, address),
        }
    }
}

impl Peers {
    fn of(rule: &Rule) -> Option<Self> {
        let (Matches::Ip { nets, ports, protocol }, Some(from)) = (&rule.matches, &rule.from) else { return None };
        let mut on = Addresses::default();
        on.add(nets.as_deref(), ports.as_deref(), &protocols_of(*protocol, true));
        on.settle();
        Some(Self { on, from: from.clone() })
    }
}

/// The addresses of rules without peers.
fn open(inbound: &[Rule]) -> Addresses {
    let mut open = Addresses::default();
    for rule in inbound.iter().filter(|rule| rule.from.is_none()) {
        if let Matches::Ip { nets, ports, protocol } = &rule.matches {
            open.add(nets.as_deref(), ports.as_deref(), &protocols_of(*protocol, false));
        }
    }
    open.settle();
    open
}

/// The protocols that a rule is for. One with peers is none for datagrams, since nobody asks before they are received.
fn protocols_of(named: Option<Protocol>, with_peers: bool) -> Vec<Protocol> {
    match named {
        Some(protocol) => vec![protocol],
        None if with_peers => vec![Protocol::Tcp],
        None => vec![Protocol::Tcp, Protocol::Udp],
    }
}

fn has(addresses: &Addresses, socket: &Socket, address: &Address) -> bool {
    let (Some(protocol), Some(ip), Some(port)) = (protocol_of(socket), ip(address), port(address)) else {
        return false;
    };
    addresses.has(protocol, ip, port)
}

fn matches(
    at: &str,
    key: &str,
    addresses: Option<OneOrMany<String>>,
    ports: Option<OneOrMany<Span<u16>>>,
    protocol: Option<Protocol>,
    unix: Option<String>,
    unix_abstract: Option<String>,
) -> Result<Matches, ConfigError> {
    let is_ip = addresses.is_some() || ports.is_some() || protocol.is_some();
    match (unix, unix_abstract) {
        (None, None) => Ok(Matches::Ip {
            nets: addresses.map(|addresses| nets(addresses, &format!("{at}/{key}"))).transpose()?,
            ports: ports.map(OneOrMany::into_vec),
            protocol,
        }),
        (Some(_), Some(_)) => Err(ConfigError::at(at, "a rule has either \"unix\" or \"unix_abstract\"")),
        _ if is_ip => Err(ConfigError::at(at, "a rule for AF_UNIX has no addresses, ports or protocol")),
        (Some(path), None) if !path.starts_with('/') => {
            let error = ConfigError::at(format!("{at}/unix"), format!("{path:?} is not an absolute path"));
            Err(match path.strip_prefix('@') {
                Some(name) => error.hint(format!("an abstract name is written \"unix_abstract\": {}", json(name))),
                None => error.hint(format!("did you mean {}?", json(&format!("/{path}")))),
            })
        }
        (Some(path), None) if path.contains('\0') => {
            Err(ConfigError::at(format!("{at}/unix"), format!("{path:?} has a NUL, which no path has")))
        }
        (Some(path), None) => Ok(Matches::Unix(Glob::new(&path))),
        (None, Some(name)) => Ok(Matches::UnixAbstract(Glob::new(&name))),
    }
}

fn nets(addresses: OneOrMany<String>, at: &str) -> Result<Vec<IpNet>, ConfigError> {
    let many = matches!(addresses, OneOrMany::Many(_));
    let addresses = addresses.into_vec().into_iter().enumerate();
    addresses
        .map(|(n, text)| {
            let wrong = |message| ConfigError::at(if many { format!("{at}/{n}") } else { at.to_owned() }, message);
            if let Ok(address) = text.parse::<IpAddr>() {
                return Ok(unmapped(&address.into()));
            }
            let net = text.parse::<IpNet>().map_err(|_| {
                wrong(format!("{text:?} is neither an address nor a network"))
                    .hint("write 192.0.2.7, 192.0.2.0/24, 2001:db8::1 or 2001:db8::/32")
            })?;
            // An address with a length that is wrong would be taken for a network far larger than what was meant.
            if net != net.trunc() {
                return Err(wrong(format!("{text:?} is an address with the length of a network that it lies in"))
                    .hint(format!("did you mean {}/{} or {}?", net.addr(), net.max_prefix_len(), net.trunc())));
            }
            Ok(unmapped(&net))
        })
        .collect()
}

/// Mapped addresses arrive as IPv4, so rules for them must be IPv4 too.
fn unmapped(net: &IpNet) -> IpNet {
    if let IpNet::V6(v6) = net
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && v6.prefix_len() >= 96
        && let Ok(mapped) = ipnet::Ipv4Net::new(v4, v6.prefix_len() - 96)
    {
        return mapped.into();
    }
    *net
}

/// A destination that the kernel replaces by its own host: 0.0.0.0 and :: are the loopback addresses there.
fn meant(address: &Address) -> Address {
    match address {
        Address::Ipv4(v4) if v4.ip == 0 => {
            Address::Ipv4(callgate_sdk::Ipv4Address { ip: Ipv4Addr::LOCALHOST.into(), port: v4.port })
        }
        Address::Ipv6(v6) if v6.high == 0 && v6.low == 0 => {
            Address::Ipv6(callgate_sdk::Ipv6Address { high: 0, low: 1, port: v6.port, scope: v6.scope })
        }
        other => other.clone(),
    }
}

fn is_ordinary(socket: &Socket) -> bool {
    matches!(protocol_of(socket), Some(Protocol::Tcp | Protocol::Udp))
}

fn protocol_of(socket: &Socket) -> Option<Protocol> {
    if !matches!(socket.family, AF_INET | AF_INET6) {
        return None;
    }
    match (socket.kind, socket.protocol) {
        (SOCK_STREAM, 0 | 6 | 262) => Some(Protocol::Tcp),
        (SOCK_DGRAM, 0 | 17) => Some(Protocol::Udp),
        (SOCK_DGRAM, 136) => Some(Protocol::Udplite),
        (SOCK_DGRAM, 1 | 58) => Some(Protocol::Icmp),
        (SOCK_STREAM | SOCK_SEQPACKET, 132) => Some(Protocol::Sctp),
        _ => None,
    }
}

fn ip(address: &Address) -> Option<IpAddr> {
    match address {
        Address::Ipv4(v4) => Some(Ipv4Addr::from(v4.ip).into()),
        Address::Ipv6(v6) => Some(Ipv6Addr::from(u128::from(v6.high) << 64 | u128::from(v6.low)).into()),
        _ => None,
    }
}

fn port(address: &Address) -> Option<u16> {
    match address {
        Address::Ipv4(v4) => Some(v4.port),
        Address::Ipv6(v6) => Some(v6.port),
        _ => None,
    }
}

fn show(address: &Address) -> String {
    match (address, ip(address), port(address)) {
        (_, Some(IpAddr::V4(ip)), Some(port)) => format!("{ip}:{port}"),
        (_, Some(IpAddr::V6(ip)), Some(port)) => format!("[{ip}]:{port}"),
        (Address::Unix(path), ..) => path.clone(),
        (Address::UnixAbstract(name), ..) => format!("@{name}"),
        (Address::UnixUnnamed, ..) => "an unnamed AF_UNIX address".to_owned(),
        (Address::Unspecified, ..) => "no address".to_owned(),
        (Address::Other(other), ..) => format!("an address of {}", family_name(other.number)),
        (other, ..) => format!("{other:?}"),
    }
}

/// The rule that would allow this address, if one can.
fn rule_for(key: &str, socket: &Socket, address: &Address) -> Option<String> {
    match address {
        // Where it is for us cannot be told, and a star would stand for more.
        Address::Unix(path) if !path.starts_with('/') => None,
        Address::Unix(name) | Address::UnixAbstract(name) if name.contains('*') => None,
        Address::Unix(path) => Some(format!("{{\"unix\": {}}}", json(path))),
        Address::UnixAbstract(name) => Some(format!("{{\"unix_abstract\": {}}}", json(name))),
        address => {
            let (ip, port, protocol) = (ip(address)?, port(address)?, protocol_of(socket)?.name());
            Some(format!("{{\"{key}\": \"{ip}\", \"ports\": {port}, \"protocol\": \"{protocol}\"}}"))
        }
    }
}

/// What would be allowed if the section did not say otherwise.
fn not_spared(rule: &str, reason: String, key: &str) -> Verdict {
    Verdict::deny(rule, reason).hint(format!("remove \"{key}\": false from network"))
}

fn denied(section: &str, what: &str, key: &str, socket: &Socket, address: &Address) -> Verdict {
    let known = matches!(address, Address::Unix(_) | Address::UnixAbstract(_)) || protocol_of(socket).is_some();
    if !known || matches!(address, Address::Other(_)) {
        let reason = format!("{what} with {} is not allowed by the network rules", show(address));
        return with_family_hint(Verdict::deny("network.family", reason), socket);
    }
    let reason = format!("no rule in network.{section} allows {what} {}", show(address));
    let verdict = Verdict::deny(format!("network.{section}"), reason);
    match (rule_for(key, socket, address), address) {
        (Some(rule), _) => verdict.hint(format!("add {rule} to network.{section}")),
        (None, Address::Unix(name) | Address::UnixAbstract(name)) if name.contains('*') => {
            verdict.hint("give it a name without a *, which in a rule stands for more than itself")
        }
        _ => verdict,
    }
}

fn with_family_hint(verdict: Verdict, socket: &Socket) -> Verdict {
    let name = match (socket.family, socket.kind, socket.protocol) {
        (AF_NETLINK, _, NETLINK_ROUTE) => return verdict.hint("remove \"netlink_route\": false from network"),
        (AF_INET | AF_INET6, SOCK_RAW, _) => Some("raw"),
        (family, ..) => FAMILIES.iter().find(|(_, number)| *number == family).map(|(name, _)| *name),
    };
    match name {
        Some(name) => verdict.hint(format!("add {name:?} to network.families")),
        None => verdict,
    }
}

fn family_name(number: u16) -> String {
    let name = FAMILIES.iter().find(|(_, known)| *known == number).map(|(name, _)| format!("the family {name}"));
    name.unwrap_or_else(|| format!("the address family {number}"))
}

/// What was meant by a family that is none.
fn family_meant(name: &str) -> String {
    let lower = name.to_ascii_lowercase();
    let short = lower.strip_prefix("af_").unwrap_or(&lower);
    match short {
        "inet" | "inet6" => "IPv4 and IPv6 are governed by rules in outbound and inbound".to_owned(),
        "unix" | "local" => "AF_UNIX is governed by rules with \"unix\" or \"unix_abstract\"".to_owned(),
        short if FAMILIES.iter().any(|(known, _)| *known == short) => format!("did you mean {short:?}?"),
        _ => {
            let known: Vec<&str> = FAMILIES.iter().map(|(known, _)| *known).collect();
            format!("known are raw, {}", known.join(", "))
        }
    }
}

/// What JSON Schema needs beyond the types.
mod schema {
    use std::borrow::Cow;

    use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

    use super::FAMILIES;

    pub(super) struct Net;

    impl JsonSchema for Net {
        fn inline_schema() -> bool {
            true
        }

        fn schema_name() -> Cow<'static, str> {
            "Net".into()
        }

        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            // A first look; what a pattern cannot tell, the plugin does.
            json_schema!({
                "type": "string",
                "pattern": r"^([0-9.]+(/([0-9]|[12][0-9]|3[0-2]))?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(/([0-9]|[1-9][0-9]|1[01][0-9]|12[0-8]))?)$",
                "examples": ["192.0.2.7", "192.0.2.0/24", "2001:db8::/32"],
            })
        }
    }

    pub(super) struct Family;

    impl JsonSchema for Family {
        fn inline_schema() -> bool {
            true
        }

        fn schema_name() -> Cow<'static, str> {
            "Family".into()
        }

        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            let names: Vec<&str> = ["raw"].into_iter().chain(FAMILIES.iter().map(|(name, _)| *name)).collect();
            json_schema!({ "type": "string", "enum": names })
        }
    }

    /// A rule is for IP addresses, or for a path, or for an abstract name.
    pub(super) fn one_kind(rule: &mut Schema) {
        let none_of = |keys: &[&str]| {
            let keys: Vec<_> = keys.iter().map(|key| serde_json::json!({ "required": [key] })).collect();
            serde_json::json!({ "not": { "anyOf": keys } })
        };
        let ip = ["to", "on", "ports", "protocol"];
        let with = |other: &'static str| [&ip[..], &[other]].concat();
        rule.insert(
            "dependentSchemas".to_owned(),
            serde_json::json!({ "unix": none_of(&with("unix_abstract")), "unix_abstract": none_of(&with("unix")) }),
        );
    }
}

use schema::{Family, Net, one_kind};

#[cfg(test)]
mod tests {
    use super::*;
    use callgate_sdk::Ipv4Address;

    fn network(json: &str) -> Result<Network, ConfigError> {
        Network::new(serde_json::from_str(json).unwrap())
    }

    fn tcp(ip: [u8; 4], port: u16) -> Endpoint {
        Endpoint {
            socket: Socket { family: AF_INET, kind: SOCK_STREAM, protocol: 6 },
            address: Address::Ipv4(Ipv4Address { ip: u32::from_be_bytes(ip), port }),
        }
    }

    fn ok(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Allow(_))
    }

    #[test]
    fn what_no_rule_allows_is_denied_in_every_family() {
        let network =
            network(r#"{"outbound": [{"to": "10.0.0.0/8", "ports": [443, "8000-8100"], "protocol": "tcp"}]}"#).unwrap();
        assert!(ok(&network.outbound("connect", &tcp([10, 1, 2, 3], 443))));
        assert!(ok(&network.outbound("connect", &tcp([10, 1, 2, 3], 8050))));
        assert!(!ok(&network.outbound("connect", &tcp([10, 1, 2, 3], 80))));
        assert!(!ok(&network.outbound("connect", &tcp([11, 1, 2, 3], 443))));
        for (family, kind, protocol) in
            [(17, 3, 0), (40, 1, 0), (AF_INET, 3, 1), (AF_NETLINK, 3, 12), (AF_INET, 1, 132)]
        {
            assert!(!ok(&network.socket(&Socket { family, kind, protocol })), "{family} {kind} {protocol}");
        }
        assert!(ok(&network.socket(&Socket { family: AF_NETLINK, kind: 3, protocol: 0 })));
        assert!(ok(&network.socket(&Socket { family: AF_INET, kind: SOCK_STREAM, protocol: 262 })));
    }

    #[test]
    fn no_address_at_all_means_the_loopback_address() {
        let network = network(r#"{"outbound": [{"to": "127.0.0.0/8"}]}"#).unwrap();
        assert!(ok(&network.outbound("connect", &tcp([0, 0, 0, 0], 80))));
    }

    #[test]
    fn clients_may_bind_port_0_but_not_listen_on_it() {
        let network = network("{}").unwrap();
        assert!(ok(&network.bind(&tcp([0, 0, 0, 0], 0))));
        assert!(!ok(&network.listen(&tcp([0, 0, 0, 0], 0))));
        assert!(!ok(&network.bind(&tcp([0, 0, 0, 0], 8080))));
    }

    #[test]
    fn what_needs_no_rule_can_be_denied_too() {
        let unix = Socket { family: AF_UNIX, kind: SOCK_STREAM, protocol: 0 };
        let netlink = Socket { family: AF_NETLINK, kind: SOCK_RAW, protocol: NETLINK_ROUTE };
        let port_0 = tcp([0, 0, 0, 0], 0);
        let no_name = Endpoint { socket: unix, address: Address::UnixUnnamed };
        let no_address = Endpoint { address: Address::Unspecified, ..port_0.clone() };
        for key in ["none", "netlink_route", "unix_sockets", "unix_autobind", "bind_port_0", "dissolve"] {
            let network =
                if key == "none" { network("{}") } else { network(&format!(r#"{{"{key}": false}}"#)) }.unwrap();
            for (of, verdict) in [
                ("netlink_route", network.socket(&netlink)),
                ("unix_sockets", network.socket(&unix)),
                ("unix_autobind", network.bind(&no_name)),
                ("bind_port_0", network.bind(&port_0)),
                ("bind_port_0", network.bind(&no_address)),
                ("dissolve", network.outbound("connect", &no_address)),
            ] {
                assert_eq!(ok(&verdict), of != key, "{key}: {of}");
                if let Verdict::Deny(denial) = verdict {
                    assert_eq!(denial.hint, Some(format!("remove \"{key}\": false from network")));
                }
            }
        }
        let network = network(r#"{"bind_port_0": false, "inbound": [{"ports": 0}]}"#).unwrap();
        assert!(ok(&network.bind(&port_0)));
    }

    #[test]
    fn sockets_are_what_their_names_say() {
        let socket = Socket { family: AF_UNIX, kind: SOCK_STREAM, protocol: 0 };
        let rules = r#"[{"unix": "/run/[a]?{b}.sock"}, {"unix_abstract": "!x\\"}, {"unix": "/run/app/*.sock"}]"#;
        let network = network(&format!(r#"{{"outbound": {rules}}}"#)).unwrap();
        let verdict = |address| network.outbound("connect", &Endpoint { socket, address });
        let path = |path: &str| verdict(Address::Unix(path.to_owned()));
        let name = |name: &str| verdict(Address::UnixAbstract(name.to_owned()));
        assert!(ok(&path("/run/[a]?{b}.sock")) && ok(&path("/run/app/x.sock")) && ok(&name("!x\\")));
        assert!(!ok(&path("/run/axb.sock")) && !ok(&path("/run/app/x/y.sock")) && !ok(&name("y")));
        let Verdict::Deny(denial) = path("/run/a*.sock") else { panic!() };
        assert!(denial.hint.is_some_and(|hint| hint.contains("without a *")));
    }

    #[test]
    fn every_family_of_the_kernel_can_be_named() {
        for (name, number) in FAMILIES {
            let network = network(&format!(r#"{{"families": ["{name}"]}}"#)).unwrap();
            for (_, other) in FAMILIES.iter().filter(|(_, other)| *other != AF_NETLINK) {
                let socket = Socket { family: *other, kind: SOCK_DGRAM, protocol: 0 };
                assert_eq!(ok(&network.socket(&socket)), other == number, "{name} {other}");
            }
        }
        for (name, hint) in [("AF_VSOCK", "did you mean \"vsock\"?"), ("unix", "unix_abstract"), ("x", "x25, rose")] {
            let error = network(&format!(r#"{{"families": ["{name}"]}}"#)).unwrap_err();
            assert!(error.hint.as_ref().is_some_and(|said| said.contains(hint)), "{error:?}");
        }
    }

    #[test]
    fn a_network_is_written_by_its_first_address() {
        for (text, hint) in [
            ("127.0.0.1/0", "did you mean 127.0.0.1/32 or 0.0.0.0/0?"),
            ("10.1.2.3/8", "did you mean 10.1.2.3/32 or 10.0.0.0/8?"),
            ("2001:db8::1/32", "did you mean 2001:db8::1/128 or 2001:db8::/32?"),
            ("::ffff:10.0.0.1/104", "did you mean ::ffff:10.0.0.1/128 or ::ffff:10.0.0.0/104?"),
        ] {
            for key in ["to", "on", "from"] {
                let direction = if key == "to" { "outbound" } else { "inbound" };
                let error = network(&format!(r#"{{"{direction}": [{{"{key}": "{text}"}}]}}"#)).unwrap_err();
                assert_eq!(error.pointer, format!("/network/{direction}/0/{key}"));
                assert_eq!(error.hint.as_deref(), Some(hint), "{text}");
            }
        }
        for text in ["127.0.0.1/32", "0.0.0.0/0", "::ffff:10.0.0.0/104", "::1/128", "::/0", "10.1.2.3"] {
            network(&format!(r#"{{"outbound": [{{"to": "{text}"}}]}}"#)).unwrap();
        }
    }

    #[test]
    fn a_rule_with_peers_lets_no_datagrams_in() {
        let network = network(r#"{"inbound": [{"ports": 80, "from": "10.0.0.0/8"}]}"#).unwrap();
        let udp = Socket { family: AF_INET, kind: SOCK_DGRAM, protocol: 17 };
        assert!(ok(&network.bind(&tcp([0, 0, 0, 0], 80))));
        assert!(!ok(&network.bind(&Endpoint { socket: udp, ..tcp([0, 0, 0, 0], 80) })));
    }

    #[test]
    fn who_may_connect_is_said_by_the_rules_for_that_place() {
        let rules = r#"[{"ports": 80, "from": "10.0.0.0/8"}, {"ports": 80, "from": "192.0.2.1"}, {"ports": 443}]"#;
        let network = network(&format!(r#"{{"inbound": {rules}}}"#)).unwrap();
        assert!(network.restricts_peers());
        let admits = |port, peer| {
            let (Endpoint { socket, address: local }, peer) = (tcp([127, 0, 0, 1], port), tcp(peer, 9).address);
            ok(&network.accept(&Accepted { socket, local, peer }))
        };
        assert!(admits(80, [10, 1, 1, 1]) && admits(80, [192, 0, 2, 1]) && admits(443, [192, 0, 2, 2]));
        assert!(!admits(80, [192, 0, 2, 2]) && !admits(8080, [10, 1, 1, 1]));
    }

    #[test]
    fn a_mistake_is_reported_at_its_place() {
        let error = network(r#"{"outbound": [{"to": ["10.0.0.0/8", "10.0.0.0/33"]}]}"#).unwrap_err();
        assert_eq!(error.pointer, "/network/outbound/0/to/1");
        let error = network(r#"{"inbound": [{"protocol": "udp", "from": "10.0.0.1"}]}"#).unwrap_err();
        assert_eq!(error.pointer, "/network/inbound/0/from");
    }

    proptest::proptest! {
        #[test]
        fn a_network_holds_the_addresses_whose_first_bits_are_its_own(a: u32, b: u32, bits in 0_u8..=32) {
            let first = a & u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            let text = format!("{}/{bits}", Ipv4Addr::from(first));
            let network = network(&format!(r#"{{"outbound": [{{"to": "{text}"}}]}}"#)).unwrap();
            let expected = bits == 0 || (a ^ b) >> (32 - u32::from(bits)) == 0;
            let b = if b == 0 { 1 } else { b };
            let expected = expected && (a ^ b).checked_shr(32 - u32::from(bits)).unwrap_or(0) == 0;
            assert_eq!(ok(&network.outbound("connect", &tcp(b.to_be_bytes(), 1))), expected);
        }

        #[test]
        fn any_address_is_taken_or_refused_without_a_panic(text: String) {
            let _ = nets(OneOrMany::One(text.clone()), "");
            Span::<u16>::parse(&text);
        }
    }
}
