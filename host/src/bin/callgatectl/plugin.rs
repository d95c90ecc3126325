//! `callgatectl plugin …`.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use callgate::ctl::Checked;
use callgate::ctl::plugin::registry::Transport;
use callgate::ctl::plugin::{
    Format, Limits, archive, bench, build, config, inspect, new, registry, run as runs, sign, test,
};

use crate::arguments::{Form, Given, Usage, say};

const FORMS: &[Form] = &[
    Form {
        name: "plugin new",
        summary: "Makes a crate that builds, passes its tests and denies something at once.",
        usage: "NAME [--dir DIR] [--sdk SDK]",
        help: "\
  --dir DIR  where; default: a directory called NAME
  --sdk SDK  where callgate-sdk comes from: a directory, the URL of a git repository, or a version; default: the version
             that fits this callgatectl
",
        words: 1..=1,
        options: &["dir", "sdk"],
        flags: &[],
        run: new_,
    },
    Form {
        name: "plugin build",
        summary: "Builds a crate as a component, and sees that it loads.",
        usage: "[DIR] [-o FILE]",
        help: "\
  DIR                the crate's directory; default: this one
  -o, --output FILE  the component; default: NAME.wasm beside Cargo.toml

Needs cargo and the target wasm32-unknown-unknown (`rustup target add wasm32-unknown-unknown`, or Debian's rustc-web and
rust-web-src).
",
        words: 0..=1,
        options: &["output"],
        flags: &[],
        run: build_,
    },
    Form {
        name: "plugin componentize",
        summary: "Makes a component of a core module, of whatever language, and sees that it loads.",
        usage: "MODULE.wasm -o FILE.wasm",
        help: "\
The module exports the plugin's functions under their names in the component model, `callgate:policy/policy@0.1.0#decide` and
so on, as wit-bindgen generates them; `callgatectl plugin wit` prints the interface. What it imports of WASI
(wasi_snapshot_preview1) is replaced by stubs that grant nothing.
",
        words: 1..=1,
        options: &["output"],
        flags: &[],
        run: componentize,
    },
    Form {
        name: "plugin wit",
        summary: "Prints the interface between callgate and its plugins (WIT), for bindings generators of other languages.",
        usage: "[--c DIR]",
        help: "\
  --c DIR  write bindings for C into this directory instead: plugin.h, plugin.c and plugin_component_type.o
",
        words: 0..=0,
        options: &["c"],
        flags: &[],
        run: wit,
    },
    Form {
        name: "plugin inspect",
        summary: "Says what a component is, and whether this callgate can load it.",
        usage: "FILE.wasm [--config FILE|JSON] [--deadline-ms N] [--memory-mib N] [--json]",
        help: "\
  --config FILE|JSON  its configuration, without which it is not known what it decides on
  --deadline-ms N     how long a decision may take; default: as in a policy that says nothing
  --memory-mib N      how much memory it may use; likewise
  --json              JSON instead of text
",
        words: 1..=1,
        options: &["config", "deadline-ms", "memory-mib"],
        flags: &["json"],
        run: inspect_,
    },
    Form {
        name: "plugin check",
        summary: "Says nothing if this callgate can load a component, and why not otherwise.",
        usage: "FILE.wasm [--config FILE|JSON] [--deadline-ms N] [--memory-mib N]",
        help: "\
  --config FILE|JSON  its configuration, which then has to be right too
  --deadline-ms N     how long a decision may take; default: as in a policy that says nothing
  --memory-mib N      how much memory it may use; likewise
",
        words: 1..=1,
        options: &["config", "deadline-ms", "memory-mib"],
        flags: &[],
        run: check,
    },
    Form {
        name: "plugin run",
        summary: "Asks a plugin about events, in order, and prints each verdict and its time.",
        usage: "FILE.wasm [--config FILE|JSON] [EVENTS] [--deadline-ms N] [--memory-mib N] [--json]",
        help: "\
  EVENTS              one event in JSON, or any number of them, as in an audit log, whose records are taken as they are;
                      - or nothing: standard input
  --config FILE|JSON  its configuration; default: {}
  --deadline-ms N     how long a decision may take; default: as in a policy that says nothing
  --memory-mib N      how much memory it may use; likewise
  --json              a JSON object a line instead of text

What is left out of an event has a plausible value. Facts that the plugin may ask for stand in an object \"facts\".
",
        words: 1..=2,
        options: &["config", "deadline-ms", "memory-mib"],
        flags: &["json"],
        run: run_,
    },
    Form {
        name: "plugin test",
        summary: "Compares a plugin's verdicts with a table of what they should be, in the runtime that enforces.",
        usage: "FILE.wasm|DIR [CASES.json] [--format text|json|tap|junit]",
        help: "\
  FILE.wasm|DIR  a component, or the directory of a crate, which is built first
  CASES.json     the table (policies/cases.schema.json); default: cases.json beside the component or in the crate
  --format F     how results are written; default: text
",
        words: 1..=2,
        options: &["format"],
        flags: &[],
        run: test_,
    },
    Form {
        name: "plugin bench",
        summary: "Measures what a plugin's decisions cost.",
        usage: "FILE.wasm [--config FILE|JSON] [--events FILE] [--seconds N] [--max-p99-us N] [--max-memory-mib N] [--json]",
        help: "\
  --config FILE|JSON    its configuration; default: {}
  --events FILE         what it is asked about, again and again; default: one event of each kind that it subscribes to
  --seconds N           for how long; default: 2
  --max-p99-us N        fail if the 99th percentile of a decision's time is more, in microseconds
  --max-memory-mib N    fail if the plugin has more memory
  --deadline-ms N       how long a decision may take; default: as in a policy that says nothing
  --memory-mib N        how much memory it may use; likewise
  --json                JSON instead of text
",
        words: 1..=1,
        options: &["config", "events", "seconds", "max-p99-us", "max-memory-mib", "deadline-ms", "memory-mib"],
        flags: &["json"],
        run: bench_,
    },
    Form {
        name: "plugin keygen",
        summary: "Makes a key for signatures: NAME.key and NAME.pub, in PEM.",
        usage: "NAME",
        help: "",
        words: 1..=1,
        options: &[],
        flags: &[],
        run: keygen,
    },
    Form {
        name: "plugin sign",
        summary: "Signs a file with Ed25519, detached.",
        usage: "FILE --key NAME.key [--signature FILE.sig]",
        help: "\
  --key FILE        the private key, PKCS#8 in PEM
  --signature FILE  where the signature goes; default: FILE.sig

`openssl pkeyutl -verify -rawin -pubin -inkey NAME.pub -in FILE -sigfile FILE.sig` verifies it too.
",
        words: 1..=1,
        options: &["key", "signature"],
        flags: &[],
        run: sign_,
    },
    Form {
        name: "plugin verify",
        summary: "Verifies a file's signature.",
        usage: "FILE --key NAME.pub [--signature FILE.sig]",
        help: "\
  --key FILE        the public key in PEM
  --signature FILE  the signature; default: FILE.sig
",
        words: 1..=1,
        options: &["key", "signature"],
        flags: &[],
        run: verify,
    },
    Form {
        name: "plugin push",
        summary: "Pushes a plugin to an OCI registry, and prints its name with the digest.",
        usage: "REGISTRY/NAME:TAG FILE.wasm [--plain-http]",
        help: "\
  --plain-http  without TLS, for a registry on this machine

Credentials are those of `docker login`.
",
        words: 2..=2,
        options: &[],
        flags: &["plain-http"],
        run: push,
    },
    Form {
        name: "plugin pull",
        summary: "Pulls a plugin from an OCI registry, verifies its digests, and prints that of its manifest.",
        usage: "REGISTRY/NAME[:TAG|@DIGEST] -o FILE.wasm [--plain-http]",
        help: "\
  -o, --output FILE  where it goes
  --plain-http       without TLS, for a registry on this machine

Credentials are those of `docker login`.
",
        words: 1..=1,
        options: &["output"],
        flags: &["plain-http"],
        run: pull,
    },
    Form {
        name: "plugin save",
        summary: "Saves a plugin into an archive, an OCI image layout, for places without a registry.",
        usage: "FILE.wasm -o ARCHIVE.tar [--name NAME]",
        help: "\
  -o, --output FILE  where it goes
  --name NAME        what it is called in the archive
",
        words: 1..=1,
        options: &["output", "name"],
        flags: &[],
        run: save,
    },
    Form {
        name: "plugin load",
        summary: "Takes a plugin out of an archive, and verifies its digests.",
        usage: "ARCHIVE.tar -o FILE.wasm [--name NAME]",
        help: "\
  -o, --output FILE  where it goes
  --name NAME        which one, if there are several
",
        words: 1..=1,
        options: &["output", "name"],
        flags: &[],
        run: load,
    },
];

/// Finds the subcommand, and lets it do its work.
pub(crate) fn run(mut arguments: Vec<OsString>) -> Result<Checked> {
    if arguments.is_empty() {
        return Err(Usage("plugin: there is no subcommand; see callgatectl plugin --help".to_owned()).into());
    }
    let word = arguments.remove(0);
    if word == "--help" || word == "-h" {
        return say(&help());
    }
    let name = format!("plugin {}", word.to_string_lossy());
    match FORMS.iter().find(|form| form.name == name) {
        Some(form) => form.run(arguments),
        None => Err(Usage(format!("plugin: there is no subcommand {word:?}; see callgatectl plugin --help")).into()),
    }
}

/// All subcommands, a line each.
pub(crate) fn help() -> String {
    let mut text = "Subcommands:\n".to_owned();
    for form in FORMS {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {:20} {}", form.name, form.summary);
    }
    text + "\n`callgatectl plugin SUBCOMMAND --help` says what each takes.\n"
}

fn new_(given: &Given) -> Result<Checked> {
    let name = given.word(0).to_string_lossy().into_owned();
    let directory = given.option_path("dir").map(Path::to_owned);
    let sdk = given.text("sdk")?.map(str::to_owned);
    let directory = new::new(&new::New { name, directory, sdk })?;
    say(&format!("{}: now `cargo test` and `callgatectl plugin test {0}`\n", directory.display()))
}

fn build_(given: &Given) -> Result<Checked> {
    let directory = given.optional_word(0).map_or(Path::new("."), Path::new);
    let file = build::build(directory, given.option_path("output"))?;
    say(&format!("{}\n", file.display()))
}

fn componentize(given: &Given) -> Result<Checked> {
    build::componentize(given.path(0), &output(given)?)?;
    Ok(Checked::Passed)
}

fn wit(given: &Given) -> Result<Checked> {
    match given.option_path("c") {
        Some(directory) => build::c_bindings(directory).map(|()| Checked::Passed),
        None => say(build::WIT),
    }
}

fn inspect_(given: &Given) -> Result<Checked> {
    let source = given.option("config").map(|it| config(Some(it))).transpose()?;
    let (text, checked) = inspect::inspect(given.path(0), source.as_ref(), limits(given)?, given.flag("json"))?;
    say(&text)?;
    Ok(checked)
}

fn check(given: &Given) -> Result<Checked> {
    let source = given.option("config").map(|it| config(Some(it))).transpose()?;
    inspect::check(given.path(0), source.as_ref(), limits(given)?)?;
    Ok(Checked::Passed)
}

fn run_(given: &Given) -> Result<Checked> {
    let run = runs::Run {
        file: given.path(0),
        config: &config(given.option("config"))?,
        limits: limits(given)?,
        events: given.optional_word(1).map_or(Path::new("-"), Path::new),
        json: given.flag("json"),
    };
    runs::run(&run, &mut io::stdout().lock())
}

fn test_(given: &Given) -> Result<Checked> {
    let format = match given.text("format")? {
        None | Some("text") => Format::Text,
        Some("json") => Format::Json,
        Some("tap") => Format::Tap,
        Some("junit") => Format::Junit,
        Some(other) => return Err(Usage(format!("--format is {other:?}; it takes text, json, tap or junit")).into()),
    };
    let cases = given.optional_word(1).map(Path::new);
    test::test(&test::Test { plugin: given.path(0), cases, format }, &mut io::stdout().lock())
}

fn bench_(given: &Given) -> Result<Checked> {
    let bench = bench::Bench {
        file: given.path(0),
        config: &config(given.option("config"))?,
        limits: limits(given)?,
        events: given.option_path("events"),
        duration: Duration::from_secs_f64(given.number("seconds", 0.001..=3600.0)?.unwrap_or(2.0)),
        max_p99_us: given.number("max-p99-us", 0.0..=f64::from(u32::MAX))?,
        max_memory_mib: given.number("max-memory-mib", 1..=4096)?,
        json: given.flag("json"),
    };
    bench::bench(&bench, &mut io::stdout().lock())
}

fn keygen(given: &Given) -> Result<Checked> {
    let (private, public) = sign::keygen(given.path(0))?;
    say(&format!("{}: keep it to yourself\n{}: for whoever is to verify\n", private.display(), public.display()))
}

fn sign_(given: &Given) -> Result<Checked> {
    let signature = sign::sign(given.path(0), required(given, "key")?, given.option_path("signature"))?;
    say(&format!("{}\n", signature.display()))
}

fn verify(given: &Given) -> Result<Checked> {
    sign::verify(given.path(0), required(given, "key")?, given.option_path("signature"))?;
    say(&format!("{}: signed by {}\n", given.path(0).display(), required(given, "key")?.display()))
}

fn push(given: &Given) -> Result<Checked> {
    let name = registry::push(&given.word(0).to_string_lossy(), given.path(1), transport(given))?;
    say(&format!("{name}\n"))
}

fn pull(given: &Given) -> Result<Checked> {
    let digest = registry::pull(&given.word(0).to_string_lossy(), &output(given)?, transport(given))?;
    say(&format!("{digest}\n"))
}

fn save(given: &Given) -> Result<Checked> {
    let digest = archive::save(given.path(0), &output(given)?, given.text("name")?)?;
    say(&format!("{digest}\n"))
}

fn load(given: &Given) -> Result<Checked> {
    let digest = archive::load(given.path(0), &output(given)?, given.text("name")?)?;
    say(&format!("{digest}\n"))
}

/// The limits of a policy, with the same bounds.
fn limits(given: &Given) -> Result<Limits> {
    let defaults = Limits::default();
    Ok(Limits {
        deadline_ms: given.number("deadline-ms", 1..=60_000)?.unwrap_or(defaults.deadline_ms),
        memory_mib: given.number("memory-mib", 1..=4096)?.unwrap_or(defaults.memory_mib),
    })
}

fn transport(given: &Given) -> Transport {
    if given.flag("plain-http") { Transport::PlainHttp } else { Transport::Https }
}

fn output(given: &Given) -> Result<PathBuf> {
    required(given, "output").map(Path::to_owned)
}

fn required<'a>(given: &'a Given, name: &str) -> Result<&'a Path> {
    given.option_path(name).ok_or_else(|| Usage(format!("--{name} is missing")).into())
}
