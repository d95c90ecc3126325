//! Egress: which networks may be reached, by name. Without a configuration, cloud metadata services may not: whoever reaches one
//! gets the credentials of the machine.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use callgate_sdk::{ConfigError, Endpoint, Event, Plugin, Verdict, by_action_alone, names, present};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

/// The plugin, configured.
#[derive(Debug)]
pub struct Egress {
    deny: Vec<Peers>,
    allow: Option<Vec<Peers>>,
}

/// Which peers may be connected and sent to.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Networks by a name of your own: addresses and CIDRs.
    #[schemars(extend("examples" = [{ "office": ["192.0.2.0/24", "2001:db8::/48"] }]))]
    networks: BTreeMap<String, Vec<String>>,
    /// Who may not be reached: names of networks, addresses, CIDRs, and `host:NAME` for what `/etc/hosts` calls so when the
    /// workload is started. Names that are known: `metadata` (instance metadata of AWS, Azure, Google, Alibaba, Oracle and
    /// others), `task-credentials` (of containers on AWS), `private`, `link-local`, `loopback`, `multicast`.
    deny: Vec<String>,
    /// Who may be reached, written likewise; nobody else may. Absent: whoever is not in `deny`.
    #[serde(deserialize_with = "present")]
    #[schemars(with = "Vec<String>")]
    allow: Option<Vec<String>>,
}

impl Default for Config {
    fn default() -> Self {
        Self { networks: BTreeMap::new(), deny: vec!["metadata".to_owned()], allow: None }
    }
}

/// Networks whose names are known.
const KNOWN: [(&str, &[&str]); 6] = [
    (
        "metadata",
        &[
            "169.254.169.254/32", // AWS, Azure, Google, Oracle, DigitalOcean, OpenStack, Hetzner
            "fd00:ec2::254/128",  // AWS
            "fd20:ce::254/128",   // Google
            "168.63.129.16/32",   // Azure's wire server
            "100.100.100.200/32", // Alibaba
            "192.0.0.192/32",     // Oracle, first version
            "169.254.42.42/32",   // Scaleway
            "fd00:42::42/128",    // Scaleway
        ],
    ),
    ("task-credentials", &["169.254.170.2/32", "169.254.170.23/32", "fd00:ec2::23/128"]),
    ("private", &["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"]),
    ("link-local", &["169.254.0.0/16", "fe80::/10"]),
    ("loopback", &["127.0.0.0/8", "::1/128"]),
    ("multicast", &["224.0.0.0/4", "255.255.255.255/32", "ff00::/8"]),
];

/// One entry of a list.
#[derive(Debug)]
struct Peers {
    written: String,
    are: Are,
}

#[derive(Debug)]
enum Are {
    Networks(Vec<IpNet>),
    Host(String),
}

#[callgate_sdk::plugin(schema = "config.schema.json")]
impl Plugin for Egress {
    type Config = Config;
    const NAME: &'static str = "egress";

    fn new(config: Config) -> Result<Self, ConfigError> {
        let mut networks = BTreeMap::new();
        for (name, written) in &config.networks {
            // A JSON Pointer has `~` and `/` escaped.
            let place = format!("/networks/{}", name.replace('~', "~0").replace('/', "~1"));
            if KNOWN.iter().any(|(known, _)| known == name) || name.starts_with("host:") || network(name).is_some() {
                return Err(ConfigError::at(place, format!("{name:?} means something already")));
            }
            let read = |(index, text): (usize, &String)| {
                network(text).ok_or_else(|| no_network(format!("{place}/{index}"), text))
            };
            let all: Vec<IpNet> = written.iter().enumerate().map(read).collect::<Result<_, _>>()?;
            networks.insert(name.as_str(), all);
        }
        let peers = |place: &str, list: &[String]| {
            let read = |(index, text): (usize, &String)| {
                peers(text, &networks).ok_or_else(|| no_network(format!("/{place}/{index}"), text))
            };
            list.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            deny: peers("deny", &config.deny)?,
            allow: config.allow.as_deref().map(|list| peers("allow", list)).transpose()?,
        })
    }

    fn connect(&mut self, _: &Event, to: &Endpoint) -> Verdict {
        self.judge(to)
    }

    fn send(&mut self, _: &Event, to: &Endpoint) -> Verdict {
        self.judge(to)
    }
}

impl Egress {
    fn judge(&self, to: &Endpoint) -> Verdict {
        by_action_alone();
        let Some((ip, port)) = to.address.ip() else { return Verdict::Abstain };
        let (ips, mut names) = (meant(ip), None);
        if let Some(peers) = self.deny.iter().find(|peers| peers.have(&ips, &mut names)) {
            let reason = format!("{ip} port {port} is of {:?}, which is not to be reached", peers.written);
            return Verdict::deny("egress.denied", reason).hint(format!("remove {:?} from deny", peers.written));
        }
        match &self.allow {
            Some(allow) if !allow.iter().any(|peers| peers.have(&ips, &mut names)) => {
                let reason = format!("{ip} port {port} is in no network that may be reached");
                Verdict::deny("egress.not-listed", reason).hint(format!("add {:?} to allow", ip.to_string()))
            }
            _ => Verdict::Abstain,
        }
    }
}

impl Peers {
    /// Whether one of the addresses is among them. The event's names are asked for when they are needed.
    fn have(&self, ips: &[IpAddr], known: &mut Option<Vec<String>>) -> bool {
        match &self.are {
            Are::Networks(networks) => networks.iter().any(|network| ips.iter().any(|ip| network.contains(ip))),
            Are::Host(host) => known.get_or_insert_with(names).iter().any(|name| name.eq_ignore_ascii_case(host)),
        }
    }
}

/// The address as the kernel and the network take it: no address means this machine, and some IPv6 addresses are IPv4 ones, by
/// NAT64 (RFC 6052) and 6to4 (RFC 3056). Those mapped into IPv6 are given as IPv4 by the host.
fn meant(ip: IpAddr) -> Vec<IpAddr> {
    let mut ips = vec![ip];
    match ip {
        IpAddr::V4(v4) if v4.is_unspecified() => ips.push(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(v6) if v6.is_unspecified() => ips.push(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            if bits >> 32 == 0x0064_ff9b_u128 << 64 {
                ips.push(Ipv4Addr::from_bits(bits as u32).into());
            }
            if bits >> 112 == 0x2002 {
                ips.push(Ipv4Addr::from_bits((bits >> 80) as u32).into());
            }
        }
        IpAddr::V4(_) => {}
    }
    ips
}

fn network(text: &str) -> Option<IpNet> {
    let net = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()?;
    Some(match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.addr().to_ipv4_mapped() {
            Some(v4) => ipnet::Ipv4Net::new(v4, v6.prefix_len() - 96).map_or(net, IpNet::V4),
            None => net,
        },
        _ => net,
    })
}

fn peers(text: &str, networks: &BTreeMap<&str, Vec<IpNet>>) -> Option<Peers> {
    let known = || {
        let (_, list) = KNOWN.iter().find(|(name, _)| *name == text)?;
        Some(list.iter().filter_map(|text| network(text)).collect())
    };
    let are = match text.strip_prefix("host:") {
        Some(host) if !host.is_empty() => Are::Host(host.to_owned()),
        Some(_) => return None,
        None => {
            let named = || networks.get(text).cloned();
            Are::Networks(network(text).map(|one| vec![one]).or_else(named).or_else(known)?)
        }
    };
    Some(Peers { written: text.to_owned(), are })
}

fn no_network(place: String, text: &str) -> ConfigError {
    let known: Vec<&str> = KNOWN.iter().map(|(name, _)| *name).collect();
    ConfigError::at(place, format!("{text:?} is neither an address, nor a CIDR, nor the name of a network")).hint(
        format!("known are {}; name your own in networks; a name of /etc/hosts is written host:NAME", known.join(", ")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use callgate_sdk::testing::{Tester, connect, send, strategies, udp};

    fn plugin(config: &str) -> Tester<Egress> {
        Tester::new(config).unwrap()
    }

    #[test]
    fn without_a_configuration_metadata_services_are_out_of_reach() {
        let mut plugin = plugin("{}");
        for metadata in [
            "169.254.169.254:80",
            "[::ffff:169.254.169.254]:80",
            "[64:ff9b::a9fe:a9fe]:80",
            "[2002:a9fe:a9fe::1]:80",
            "[fd00:ec2::254]:80",
            "100.100.100.200:80",
        ] {
            assert_eq!(plugin.decide(connect(metadata)).rule(), Some("egress.denied"), "{metadata}");
        }
        assert_eq!(plugin.decide(send(udp("169.254.169.254:53"))).rule(), Some("egress.denied"));
        for other in ["169.254.170.2:80", "10.0.0.1:80", "[2001:db8::1]:1", "/run/x", "@x"] {
            assert_eq!(plugin.decide(connect(other)), Verdict::Abstain, "{other}");
        }
    }

    #[test]
    fn only_listed_networks_are_reached_if_there_is_a_list() {
        let config = r#"{"networks": {"office": ["192.0.2.0/24", "2001:db8::7"]}, "deny": ["192.0.2.9"],
            "allow": ["office", "private", "loopback"]}"#;
        let mut plugin = plugin(config);
        for open in ["192.0.2.1:1", "[2001:db8::7]:1", "10.1.1.1:1", "0.0.0.0:1", "[::]:1"] {
            assert_eq!(plugin.decide(connect(open)), Verdict::Abstain, "{open}");
        }
        assert_eq!(plugin.decide(connect("192.0.2.9:1")).rule(), Some("egress.denied"), "denied for all that");
        let verdict = plugin.decide(connect("198.51.100.1:443"));
        assert_eq!(verdict.rule(), Some("egress.not-listed"));
        assert_eq!(verdict.denial().unwrap().hint.as_deref(), Some("add \"198.51.100.1\" to allow"));
    }

    #[test]
    fn names_are_those_of_the_hosts_file() {
        let mut plugin = plugin(r#"{"deny": ["host:legacy"], "allow": ["host:db.internal"]}"#);
        assert_eq!(plugin.decide(connect("10.0.0.1:5432").name("DB.internal")), Verdict::Abstain);
        assert_eq!(
            plugin.decide(connect("10.0.0.1:5432").name("db.internal").name("legacy")).rule(),
            Some("egress.denied")
        );
        assert_eq!(plugin.decide(connect("10.0.0.2:5432")).rule(), Some("egress.not-listed"));
    }

    #[test]
    fn a_mistake_has_its_place() {
        for (config, pointer) in [
            (r#"{"deny": ["10.0.0.0/8", "metdata"]}"#, "/deny/1"),
            (r#"{"allow": ["host:"]}"#, "/allow/0"),
            (r#"{"allow": null}"#, "/allow"),
            (r#"{"networks": {"a/b": ["10.0.0.0/33"]}}"#, "/networks/a~1b/0"),
            (r#"{"networks": {"private": []}}"#, "/networks/private"),
        ] {
            let error = Tester::<Egress>::new(config).unwrap_err();
            assert_eq!(error.pointer, pointer, "{config}: {error:?}");
        }
    }

    #[test]
    fn what_is_known_by_name_is_all_there() {
        for (name, list) in KNOWN {
            assert!(list.iter().all(|text| network(text).is_some()), "{name}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_network_is_reached_by_its_own_addresses_only(ip: u32, net: u32, bits in 0_u8..=32) {
            let net: IpNet = format!("{}/{bits}", Ipv4Addr::from(net)).parse().unwrap();
            let mut plugin = plugin(&format!(r#"{{"allow": ["{net}"], "deny": []}}"#));
            let (ip, inside) = (Ipv4Addr::from(ip.max(1)), |ip: Ipv4Addr| net.contains(&IpAddr::from(ip)));
            let verdict = plugin.decide(connect(format!("{ip}:1").as_str()));
            assert_eq!(verdict == Verdict::Abstain, inside(ip));
        }

        #[test]
        fn no_event_makes_it_panic(event in strategies::event()) {
            plugin(r#"{"allow": ["private"]}"#).decide(event);
        }
    }
}
