//! `callgatectl plugin bench`: what a plugin's decisions cost.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Serialize;

use super::events::{self, Told};
use super::sandbox::{Answer, Limits, Sandbox, ask};
use crate::ctl::Checked;
use crate::event::EventKinds;
use crate::policy::Source;

/// What is to be measured, and what is too much.
#[derive(Debug)]
pub struct Bench<'a> {
    /// The component.
    pub file: &'a Path,
    /// Its configuration.
    pub config: &'a Source,
    /// What it may use.
    pub limits: Limits,
    /// Events to ask about, again and again in their order; absent: one of each kind that it subscribes to.
    pub events: Option<&'a Path>,
    /// For how long.
    pub duration: Duration,
    /// The 99th percentile, in microseconds, beyond which it fails.
    pub max_p99_us: Option<f64>,
    /// The plugin's memory, in MiB, beyond which it fails.
    pub max_memory_mib: Option<u64>,
    /// JSON instead of text.
    pub json: bool,
}

/// What was measured; times in microseconds.
#[derive(Debug, Serialize)]
struct Measured {
    compile_ms: f64,
    configure_ms: f64,
    decisions: usize,
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
    memory_kib: usize,
    /// Decisions that were none because the plugin failed.
    failures: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    exceeded: Vec<String>,
}

/// Decisions before anything is measured: the first ones fill caches.
const WARM_UP: usize = 100;
/// Measurements that are kept. More take memory and say no more.
const MOST: usize = 2_000_000;

/// Asks again and again. It has failed if a limit is exceeded, or if the plugin failed.
///
/// # Errors
/// The component cannot be loaded, or there is nothing to ask it about.
pub fn bench(bench: &Bench<'_>, out: &mut dyn Write) -> Result<Checked> {
    let sandbox = Sandbox::open(bench.file)?;
    let started = Instant::now();
    let mut plugin = sandbox.configured(bench.config, bench.limits)?;
    let configured_in = started.elapsed();
    let told: Vec<Told> = match bench.events {
        Some(file) => events::read(&super::document(file)?)?.events.into_iter().map(|(_, told)| told).collect(),
        None => samples(plugin.subscriptions()),
    };
    let events: Vec<_> = told
        .into_iter()
        .filter(|told| plugin.subscriptions().contains(told.event.kind()))
        .map(|Told { event, facts }| (facts.about(&event), event))
        .collect();
    if events.is_empty() {
        bail!("there is no event that {} subscribes to", bench.file.display());
    }
    let mut times = Vec::new();
    let (mut failures, mut sequence, mut memory) = (0, 0, plugin.memory());
    let mut until = None;
    for (facts, event) in events.iter().cycle() {
        let mut event = event.clone();
        sequence += 1;
        event.sequence = sequence as u64;
        let (answer, took) = ask(&mut plugin, &event, facts);
        failures += usize::from(matches!(answer, Answer::Failed(_)));
        if sequence < WARM_UP {
            continue;
        }
        times.push(took);
        memory = memory.max(plugin.memory());
        let until = *until.get_or_insert_with(|| Instant::now() + bench.duration);
        if times.len() >= MOST || Instant::now() >= until {
            break;
        }
    }
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize].as_nanos() as f64 / 1000.0;
    let mut measured = Measured {
        compile_ms: sandbox.compiled_in.as_secs_f64() * 1000.0,
        configure_ms: configured_in.as_secs_f64() * 1000.0,
        decisions: times.len(),
        p50_us: at(0.5),
        p90_us: at(0.9),
        p99_us: at(0.99),
        p999_us: at(0.999),
        max_us: at(1.0),
        memory_kib: memory >> 10,
        failures,
        exceeded: Vec::new(),
    };
    measured.compare(bench);
    if bench.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&measured)?)?;
    } else {
        measured.text(out)?;
    }
    Ok(if measured.exceeded.is_empty() { Checked::Passed } else { Checked::Failed })
}

impl Measured {
    fn compare(&mut self, bench: &Bench<'_>) {
        if self.failures > 0 {
            self.exceeded.push(format!("the plugin failed {} times", self.failures));
        }
        if let Some(most) = bench.max_p99_us.filter(|most| self.p99_us > *most) {
            self.exceeded.push(format!("p99 is {:.1} µs, the limit is {most} µs", self.p99_us));
        }
        if let Some(most) = bench.max_memory_mib.filter(|most| self.memory_kib as u64 > most << 10) {
            self.exceeded.push(format!("it has {} KiB of memory, the limit is {most} MiB", self.memory_kib));
        }
    }

    fn text(&self, out: &mut dyn Write) -> std::io::Result<()> {
        writeln!(out, "compiled in {:.1} ms, configured in {:.1} ms", self.compile_ms, self.configure_ms)?;
        writeln!(out, "{} decisions, in µs:", self.decisions)?;
        for (name, time) in [
            ("p50", self.p50_us),
            ("p90", self.p90_us),
            ("p99", self.p99_us),
            ("p99.9", self.p999_us),
            ("most", self.max_us),
        ] {
            writeln!(out, "  {name:6} {time:10.2}")?;
        }
        writeln!(out, "memory: {} KiB", self.memory_kib)?;
        for exceeded in &self.exceeded {
            writeln!(out, "FAILED: {exceeded}")?;
        }
        Ok(())
    }
}

/// One usual event of each kind.
fn samples(kinds: EventKinds) -> Vec<Told> {
    const SAMPLES: [&str; 9] = [
        r#"{"event": "exec", "file": {"path": "/usr/bin/curl"}, "loader": {"path": "/usr/lib64/ld-linux-x86-64.so.2"},
            "arguments": ["curl", "-s", "https://example.com/"], "directory": "/root"}"#,
        r#"{"event": "exec-fileless", "file": {"path": "/memfd:x (deleted)"}}"#,
        r#"{"event": "connect", "address": {"family": "ipv4", "ip": "192.0.2.1", "port": 443}}"#,
        r#"{"event": "bind", "address": {"family": "ipv4", "ip": "0.0.0.0", "port": 8080}}"#,
        r#"{"event": "listen", "address": {"family": "ipv4", "ip": "0.0.0.0", "port": 8080}}"#,
        r#"{"event": "accept", "local": {"family": "ipv4", "ip": "192.0.2.7", "port": 8080},
            "peer": {"family": "ipv4", "ip": "192.0.2.1", "port": 50000}, "socket": {"family": 2, "type": 1, "protocol": 6}}"#,
        r#"{"event": "send", "address": {"family": "ipv4", "ip": "192.0.2.53", "port": 53}}"#,
        r#"{"event": "socket", "family": 2, "type": 1, "protocol": 6}"#,
        r#"{"event": "credentials", "call": "setuid", "uids": [1000]}"#,
    ];
    let told = SAMPLES.iter().filter_map(|text| events::event(text, &[]).ok());
    told.filter(|told| kinds.contains(told.event.kind())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventKind;

    #[test]
    fn there_is_a_sample_of_each_kind() {
        let kinds: Vec<EventKind> =
            samples(EventKind::ALL.into_iter().collect()).iter().map(|told| told.event.kind()).collect();
        assert_eq!(kinds, EventKind::ALL);
    }
}
