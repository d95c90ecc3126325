//! Many rules for addresses at once.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::forms::Span;
use crate::network::Protocol;

/// Networks with ports and protocols, compiled: looked up by the first bits of an address, for each number of bits that
/// there is.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    anywhere: Ports,
    v4: Vec<Level<u32>>,
    v6: Vec<Level<u128>>,
}

/// The networks of one length.
#[derive(Debug)]
struct Level<Bits> {
    mask: Bits,
    /// Sorted, once all are there.
    networks: Vec<(Bits, Ports)>,
}

/// The ports of each protocol: ranges that don't touch, sorted, once all are there.
#[derive(Debug, Clone, Default)]
struct Ports([Vec<(u16, u16)>; Protocol::ALL.len()]);

impl Addresses {
    /// Adds what a rule allows: these networks (`None`: all), these ports (likewise), by these protocols.
    pub(crate) fn add(&mut self, nets: Option<&[IpNet]>, ports: Option<&[Span<u16>]>, protocols: &[Protocol]) {
        let all = [Span { low: 0, high: u16::MAX }];
        let ports = ports.unwrap_or(&all);
        let Some(nets) = nets else { return self.anywhere.add(ports, protocols) };
        for net in nets {
            match net {
                IpNet::V4(net) => at(&mut self.v4, u32::from(net.netmask()), u32::from(net.network())),
                IpNet::V6(net) => at(&mut self.v6, u128::from(net.netmask()), u128::from(net.network())),
            }
            .add(ports, protocols);
        }
    }

    /// To be called when all have been added.
    pub(crate) fn settle(&mut self) {
        self.anywhere.settle();
        settle(&mut self.v4);
        settle(&mut self.v6);
    }

    /// Whether a rule allows this.
    pub(crate) fn has(&self, protocol: Protocol, ip: IpAddr, port: u16) -> bool {
        self.anywhere.has(protocol, port)
            || match ip {
                IpAddr::V4(ip) => has(&self.v4, u32::from(ip), protocol, port),
                IpAddr::V6(ip) => has(&self.v6, u128::from(ip), protocol, port),
            }
    }
}

/// The ports of a network; while rules are added, networks are in the order of the rules, and one may be there again.
fn at<Bits: Copy + Eq>(levels: &mut Vec<Level<Bits>>, mask: Bits, network: Bits) -> &mut Ports {
    let found = levels.iter().position(|level| level.mask == mask).unwrap_or_else(|| {
        levels.push(Level { mask, networks: Vec::new() });
        levels.len() - 1
    });
    let networks = &mut levels[found].networks;
    networks.push((network, Ports::default()));
    let last = networks.len() - 1;
    &mut networks[last].1
}

fn settle<Bits: Copy + Ord>(levels: &mut [Level<Bits>]) {
    for level in levels {
        level.networks.sort_by_key(|(network, _)| *network);
        level.networks.dedup_by(|(later, theirs), (earlier, ports)| {
            let same = later == earlier;
            if same {
                ports.take(theirs);
            }
            same
        });
        level.networks.iter_mut().for_each(|(_, ports)| ports.settle());
    }
}

fn has<Bits>(levels: &[Level<Bits>], ip: Bits, protocol: Protocol, port: u16) -> bool
where
    Bits: Copy + Ord + std::ops::BitAnd<Output = Bits>,
{
    levels.iter().any(|level| {
        let found = level.networks.binary_search_by_key(&(ip & level.mask), |(network, _)| *network);
        found.is_ok_and(|at| level.networks[at].1.has(protocol, port))
    })
}

impl Ports {
    fn add(&mut self, ports: &[Span<u16>], protocols: &[Protocol]) {
        for protocol in protocols {
            self.0[*protocol as usize].extend(ports.iter().map(|span| (span.low, span.high)));
        }
    }

    fn take(&mut self, other: &mut Self) {
        for (ours, theirs) in self.0.iter_mut().zip(&mut other.0) {
            ours.append(theirs);
        }
    }

    fn settle(&mut self) {
        for ranges in &mut self.0 {
            ranges.sort_unstable();
            ranges.dedup_by(|later, earlier| {
                let touch = later.0 <= earlier.1.saturating_add(1);
                if touch {
                    earlier.1 = earlier.1.max(later.1);
                }
                touch
            });
        }
    }

    fn has(&self, protocol: Protocol, port: u16) -> bool {
        let ranges = &self.0[protocol as usize];
        let after = ranges.partition_point(|(low, _)| *low <= port);
        after.checked_sub(1).is_some_and(|at| port <= ranges[at].1)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    type Rule = (Option<Vec<IpNet>>, Option<Vec<(u16, u16)>>, Protocol);

    fn any_ip() -> impl Strategy<Value = IpAddr> {
        // Few different ones, so that rules meet.
        let v4 = prop_oneof![0_u32..8, 0x7f00_0000_u32..0x7f00_0004, Just(u32::MAX)];
        let v6 = prop_oneof![0_u128..8, Just(1_u128 << 127), Just(u128::MAX)];
        prop_oneof![v4.prop_map(|ip| Ipv4Addr::from(ip).into()), v6.prop_map(|ip| Ipv6Addr::from(ip).into())]
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let net = (any_ip(), 0_u8..=128)
            .prop_map(|(ip, bits)| IpNet::new_assert(ip, if ip.is_ipv4() { bits.min(32) } else { bits }));
        let span = (0_u16..10, 0_u16..10).prop_map(|(a, b)| (a.min(b), a.max(b)));
        let ports = proptest::collection::vec(prop_oneof![span, Just((9, u16::MAX))], 0..3);
        (
            proptest::option::of(proptest::collection::vec(net, 0..3)),
            proptest::option::of(ports),
            proptest::sample::select(&Protocol::ALL[..]),
        )
    }

    proptest! {
        #[test]
        fn together_they_allow_what_one_of_them_allows(
            rules in proptest::collection::vec(any_rule(), 0..12),
            ip in any_ip(),
            port in prop_oneof![0_u16..12, Just(u16::MAX)],
            protocol in proptest::sample::select(&Protocol::ALL[..]),
        ) {
            let mut compiled = Addresses::default();
            let mut expected = false;
            for (nets, ports, by) in rules {
                let spans: Option<Vec<Span<u16>>> =
                    ports.map(|ports| ports.into_iter().map(|(low, high)| Span { low, high }).collect());
                compiled.add(nets.as_deref(), spans.as_deref(), &[by]);
                expected |= by == protocol
                    && nets.is_none_or(|nets| nets.iter().any(|net| net.contains(&ip)))
                    && spans.is_none_or(|spans| spans.iter().any(|span| span.contains(port)));
            }
            compiled.settle();
            prop_assert_eq!(compiled.has(protocol, ip, port), expected);
        }
    }
}
