//! Which addresses may be reached, and on which programs may be reached.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use callgate_sdk::{Accepted, Address, ConfigError, Endpoint, Object, Socket, Verdict, present};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::addresses::Addresses;
use crate::forms::{OneOrMany, Span};
use crate::globs::{Glob, Globs};

/// Who may be reached, and by whom. What no rule allows is denied, in every family, except:
/// sockets of `AF_INET`, `AF_INET6` (streams and datagrams) and `AF_UNIX` may be created, because it is their addresses that
/// are governed; an association may be dissolved; a socket may be bound to port 0, as clients do; and, unless
/// `"netlink_route": false`, a program may ask the kernel for its interfaces and routes.
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
    netlink_route: bool,
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
/// socket(2), address_families(7).
const FAMILIES: &[(&str, u16)] = &[
    ("ax25", 3),
    ("netlink", AF_NETLINK),
    ("packet", 17),
    ("rds", 21),
    ("can", 29),
    ("tipc", 30),
    ("bluetooth", 31),
    ("alg", 38),
    ("vsock", 40),
    ("kcm", 41),
    ("smc", 43),
    ("xdp", 44),
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
                let known: Vec<&str> = FAMILIES.iter().map(|(known, _)| *known).collect();
                let mut error =
                    ConfigError::at(format!("/network/families/{n}"), format!("{name:?} is no family that is known"));
                error.hint = Some(format!("known are raw, {}", known.join(", ")));
                error
            })
        });
        let families = named.collect::<Result<_, _>>()?;
        let peers = inbound.iter().filter_map(Peers::of).collect();
        let open = open(&inbound);
        let (outbound, inbound) = (Rules::of(outbound), Rules::of(inbound));
        Ok(Self { outbound, inbound, open, peers, families, raw, netlink_route: config.netlink_route })
    }

    /// Whether some rule says who may connect.
    pub(crate) fn restricts_peers(&self) -> bool {
        !self.peers.is_empty()
    }

    /// connect and send.
    pub(crate) fn outbound(&self, what: &str, to: &Endpoint) -> Verdict {
        if matches!(to.address, Address::Unspecified) {
            return Verdict::allow("network.dissolve");
        }
        let address = meant(&to.address);
        if self.without_rule(&to.socket) || self.outbound.has(&to.socket, &address) {
            return Verdict::allow("network.outbound");
        }
        denied("outbound", what, "to", &to.socket, &address)
    }

    /// bind. Port 0 is what clients bind; what is listened on is looked at in [`Self::listen`].
    pub(crate) fn bind(&self, to: &Endpoint) -> Verdict {
        let chosen_by_kernel = matches!(to.address, Address::UnixUnnamed | Address::Unspecified)
            || port(&to.address) == Some(0) && is_ordinary(&to.socket);
        if chosen_by_kernel || self.without_rule(&to.socket) || self.inbound.has(&to.socket, &to.address) {
            return Verdict::allow("network.inbound");
        }
        denied("inbound", "bind", "on", &to.socket, &to.address)
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
        if socket.family == AF_UNIX || is_ordinary(socket) || self.without_rule(socket) {
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
        let route = socket.family == AF_NETLINK && socket.protocol == NETLINK_ROUTE && self.netlink_route;
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
            Err(ConfigError::at(format!("{at}/unix"), format!("{path:?} is not an absolute path")))
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
            let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
            net.map(|net| unmapped(&net)).ok_or_else(|| {
                let at = if many { format!("{at}/{n}") } else { at.to_owned() };
                let mut error = ConfigError::at(at, format!("{text:?} is neither an address nor a network"));
                error.hint = Some("write 192.0.2.7, 192.0.2.0/24, 2001:db8::1 or 2001:db8::/32".to_owned());
                error
            })
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
    let text = |text: &str| serde_json::Value::from(text).to_string();
    match address {
        // Where it is for us cannot be told, and a star would stand for more.
        Address::Unix(path) if !path.starts_with('/') => None,
        Address::Unix(name) | Address::UnixAbstract(name) if name.contains('*') => None,
        Address::Unix(path) => Some(format!("{{\"unix\": {}}}", text(path))),
        Address::UnixAbstract(name) => Some(format!("{{\"unix_abstract\": {}}}", text(name))),
        address => {
            let (ip, port, protocol) = (ip(address)?, port(address)?, protocol_of(socket)?.name());
            Some(format!("{{\"{key}\": \"{ip}\", \"ports\": {port}, \"protocol\": \"{protocol}\"}}"))
        }
    }
}

fn denied(section: &str, what: &str, key: &str, socket: &Socket, address: &Address) -> Verdict {
    let known = matches!(address, Address::Unix(_) | Address::UnixAbstract(_)) || protocol_of(socket).is_some();
    if !known || matches!(address, Address::Other(_)) {
        let reason = format!("{what} with {} is not allowed by the network rules", show(address));
        return with_family_hint(Verdict::deny("network.family", reason), socket);
    }
    let reason = format!("no rule in network.{section} allows {what} {}", show(address));
    let verdict = Verdict::deny(format!("network.{section}"), reason);
    match rule_for(key, socket, address) {
        Some(rule) => verdict.hint(format!("add {rule} to network.{section}")),
        None => verdict,
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
            let text = format!("{}/{bits}", Ipv4Addr::from(a));
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
