//! The JSON Schemas of the policy and of its records: generated from the types, current, and of one mind with the loader and
//! with what is recorded.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use callgate::policy::document::Document;
use callgate_json::tidy;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

const SCHEMA: &str = "policies/policy.schema.json";
const RECORD_SCHEMA: &str = "policies/record.schema.json";
const CASES_SCHEMA: &str = "policies/cases.schema.json";
/// Set to anything: writes the schemas instead of comparing them.
const REGENERATE: &str = "CALLGATE_WRITE_SCHEMA";

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(path)
}

/// The document's schema with the built-in allowlist's in it: at the top for the short form, and as the configuration of a
/// plugin without a path.
fn schema() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut document = generator.into_root_schema_for::<Document>().to_value();
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut allowlist = generator.into_root_schema_for::<callgate_allowlist::Config>().to_value();
    let mut definitions = take(&mut allowlist, "$defs");
    for key in ["$schema", "title"] {
        take(&mut allowlist, key);
    }
    for (key, property) in allowlist["properties"].as_object().unwrap() {
        let mut property = property.clone();
        let said = property["description"].as_str().unwrap();
        property["description"] = format!("{said} Short form: the configuration of the built-in allowlist.").into();
        document["properties"][key] = property;
    }
    let short: Vec<Value> =
        allowlist["properties"].as_object().unwrap().keys().map(|key| json!({ "required": [key] })).collect();
    // Either plugins, or the short form.
    document["oneOf"] = json!([{ "required": ["plugins"] }, { "anyOf": short }]);
    definitions.as_object_mut().unwrap().insert("Allowlist".to_owned(), allowlist);
    let Value::Object(definitions) = definitions else { unreachable!() };
    document["$defs"].as_object_mut().unwrap().extend(definitions);

    let plugin = &mut document["$defs"]["Plugin"];
    plugin["properties"]["name"]["not"] = json!({ "const": "callgate" });
    plugin["properties"]["builtin"]["const"] = "allowlist".into();
    plugin["dependentRequired"] = json!({ "sha256": ["path"] });
    plugin["dependentSchemas"] = json!({ "path": { "not": { "required": ["builtin"] } } });
    plugin["if"] = json!({ "not": { "required": ["path"] } });
    plugin["then"] = json!({
        "anyOf": [{ "required": ["builtin"] }, { "properties": { "name": { "const": "allowlist" } } }],
        "properties": { "config": { "$ref": "#/$defs/Allowlist", "minProperties": 1 } },
        "required": ["config"],
    });
    tidy(&mut document);
    document
}

fn take(value: &mut Value, key: &str) -> Value {
    value.as_object_mut().unwrap().remove(key).unwrap_or_default()
}

fn record_schema() -> Value {
    let generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let mut schema = generator.into_root_schema_for::<callgate::audit::line::Line>().to_value();
    tidy(&mut schema);
    schema
}

/// Cases, with the events in them: of these much may be left out, and facts and expectations stand beside them.
#[cfg(feature = "ctl")]
fn cases_schema() -> Value {
    use callgate::ctl::plugin::cases::{Document, Expect};
    use callgate::decide::KnownFacts;
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let (facts, expect) = (generator.subschema_for::<KnownFacts>(), generator.subschema_for::<Expect>());
    let event = generator.subschema_for::<callgate::event::Event>();
    let mut document = generator.into_root_schema_for::<Document>().to_value();
    let definitions = &mut document["$defs"];
    definitions["Case"]["properties"]["events"]["items"] = event.to_value();
    definitions["Case"]["properties"]["events"]["minItems"] = 1.into();
    for (key, schema, text) in [
        ("facts", facts, "What the plugin may ask the host; what is not written down is not known."),
        ("expect", expect, "What the plugin is to say. Absent: anything, but it must not fail."),
    ] {
        let mut schema = schema.to_value();
        schema["description"] = text.into();
        definitions["Event"]["properties"][key] = schema;
    }
    definitions["Event"]["unevaluatedProperties"] = false.into();
    for (name, required) in [
        ("Event", &[][..]),
        ("Subject", &[]),
        ("File", &["path"]),
        ("Exec", &["file"]),
        ("Endpoint", &["address"]),
        ("Accept", &["local", "peer"]),
        ("Socket", &["family", "type"]),
    ] {
        definitions[name]["required"] = json!(required);
    }
    for name in ["Subject", "File"] {
        definitions[name]["additionalProperties"] = false.into();
    }
    document["properties"]["cases"]["minItems"] = 1.into();
    tidy(&mut document);
    document
}

#[cfg(not(feature = "ctl"))]
fn cases_schema() -> Value {
    serde_json::from_str(&fs::read_to_string(repository(CASES_SCHEMA)).unwrap()).unwrap()
}

#[test]
fn cases_are_what_their_schema_says() {
    let validator = jsonschema::validator_for(&cases_schema()).unwrap();
    let template = include_str!("../host/src/ctl/plugin/template/cases.json.in");
    let languages = ["c", "javascript"].map(|it| repository(&format!("plugins/languages/{it}/cases.json")));
    let mut good: Vec<String> = languages.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    good.push(template.to_owned());
    for text in good {
        let errors: Vec<String> =
            validator.iter_errors(&serde_json::from_str(&text).unwrap()).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{text}: {errors:?}");
    }
    let exec = r#""event": "exec", "file": {"path": "/x"}"#;
    for bad in [
        r#"{"cases": []}"#.to_owned(),
        r#"{"cases": [{"name": "a", "events": []}]}"#.to_owned(),
        format!(r#"{{"cases": [{{"name": "a", "events": [{{{exec}, "fil": 1}}]}}]}}"#),
        format!(r#"{{"cases": [{{"name": "a", "events": [{{{exec}, "subject": {{"pit": 1}}}}]}}]}}"#),
        format!(r#"{{"cases": [{{"name": "a", "events": [{{{exec}, "expect": {{"verdict": "no"}}}}]}}]}}"#),
        format!(r#"{{"cases": [{{"name": "a", "events": [{{{exec}, "facts": {{"x": 1}}}}]}}]}}"#),
        r#"{"cases": [{"name": "a", "events": [{"event": "exec"}]}]}"#.to_owned(),
    ] {
        assert!(!validator.is_valid(&serde_json::from_str(&bad).unwrap()), "the schema takes {bad}");
    }
}

#[test]
fn the_schemas_in_the_repository_are_those_of_the_types() {
    for (name, schema) in [(SCHEMA, schema()), (RECORD_SCHEMA, record_schema()), (CASES_SCHEMA, cases_schema())] {
        let generated = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        let file = repository(name);
        if std::env::var_os(REGENERATE).is_some() {
            fs::write(&file, &generated).unwrap();
        }
        let stored = fs::read_to_string(&file).unwrap_or_default();
        assert!(stored == generated, "{name} is not what the types say; `make schema` writes it");
    }
}

#[test]
fn records_are_what_their_schema_says() {
    let validator = jsonschema::validator_for(&record_schema()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (policy, records) = (directory.path().join("policy.json"), directory.path().join("records"));
    let document = json!({
        "allow_executables": ["/bin/bash", "/usr/bin/python3*"],
        "network": { "outbound": [{ "to": "127.0.0.1", "ports": 9, "protocol": "udp" }] },
        "users": { "uids": [0], "gids": [0] },
        "audit": { "decisions": "all", "sinks": [format!("file:{}", records.display())] }
    });
    fs::write(&policy, document.to_string()).unwrap();
    let script = r#"
import os, socket, ctypes
def attempt(call, *arguments):
    try: return call(*arguments)
    except OSError: pass
udp, tcp, unix = (socket.socket(f, t) for f, t in [(2, 2), (10, 1), (1, 1)])
for port in 9, 10:
    attempt(udp.sendto, b"x", ("127.0.0.1", port))
attempt(tcp.bind, ("::1", 4711))
attempt(tcp.listen)
attempt(tcp.connect, ("::1", 80))
attempt(unix.connect, "/nowhere")
attempt(unix.connect, "\0abstract")
attempt(socket.socket, 17, 3)
attempt(os.setgroups, [5])
attempt(os.setuid, 7)
attempt(os.execv, "/bin/ls", ["ls"])
attempt(os.execve, os.memfd_create("m"), ["m"], {})
ctypes.CDLL(None).syscall(425, 1, 0)
"#;
    let run =
        Command::new(env!("CARGO_BIN_EXE_callgate")).arg("-p").arg(&policy).args(["python3", "-c", script]).status();
    assert!(run.unwrap().success());
    let text = fs::read_to_string(&records).unwrap();
    let mut kinds = std::collections::BTreeSet::new();
    for line in text.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let errors: Vec<String> = validator.iter_errors(&record).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{line}: {errors:?}");
        kinds.insert(record["event"].as_str().unwrap().to_owned());
    }
    for kind in ["exec", "connect", "bind", "listen", "send", "socket", "credentials", "call"] {
        assert!(kinds.contains(kind), "{kind} is not in {kinds:?}\n{text}");
    }
}

#[test]
fn every_key_is_described() {
    fn visit(at: &str, schema: &Value) {
        for (key, property) in schema["properties"].as_object().unwrap_or(&Map::new()) {
            let text = property["description"].as_str().unwrap_or_default();
            assert!(text.ends_with(['.', '…']), "{at}/{key} has no description");
        }
        for (name, inner) in schema["$defs"].as_object().unwrap_or(&Map::new()) {
            visit(&format!("{at}/{name}"), inner);
        }
    }
    visit("", &schema());
    visit("", &cases_schema());
}

fn loads(document: &str) -> Result<(), String> {
    let directory = tempfile::tempdir().unwrap();
    let policy = directory.path().join("policy.json");
    fs::write(&policy, document).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_callgate")).args(["check", "--policy"]).arg(policy).output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8(output.stderr).unwrap()) }
}

#[test]
fn the_schema_takes_what_the_loader_takes() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let mut policies: Vec<(String, String)> = fs::read_dir(repository("policies"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .filter(|path| !path.to_string_lossy().ends_with(".schema.json"))
        .map(|path| (path.display().to_string(), fs::read_to_string(&path).unwrap()))
        .collect();
    assert!(policies.len() >= 9, "{policies:?}");
    let good = [
        r#"{"allow_executables": []}"#,
        r#"{"$schema": "policy.schema.json", "version": 1, "deny_executables": ["/bin/nc"]}"#,
        r#"{"network": {}, "audit": {"sinks": ["stderr", "file:/a", {"to": "fd:3", "format": "json"}], "queue": 1}}"#,
        r#"{"network": {"outbound": [{"to": ["10.0.0.0/8", "::1", "::ffff:1.2.3.4", "2001:db8::/32"], "ports": [1, "2-3", "4"]},
            {"ports": "80", "protocol": "sctp"}, {"unix": "/run/*"}, {"unix_abstract": "x"}, {}], "families": ["raw", "vsock"]}}"#,
        r#"{"network": {"inbound": [{"on": "0.0.0.0/0", "from": "10.0.0.0/8", "ports": 0}], "netlink_route": false}}"#,
        r#"{"users": {"uids": [0, "1000-1999"], "gids": []}, "mode": "dry-run", "lock_mode": true, "default": "allow"}"#,
        r#"{"plugins": [{"name": "allowlist", "config": {"allow_executables": ["/a*", "/b/"]}, "deadline_ms": 1, "memory_mib": 4}]}"#,
        r#"{"plugins": [{"name": "mine", "builtin": "allowlist", "config": {"users": {}}, "on_failure": "abstain"}]}"#,
    ];
    policies.extend(good.map(|text| (text.to_owned(), text.to_owned())));
    for (name, text) in policies {
        let errors: Vec<String> =
            validator.iter_errors(&serde_json::from_str(&text).unwrap()).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{name}: {errors:?}");
        assert_eq!(loads(&text), Ok(()), "{name}");
    }
}

#[test]
fn the_schema_refuses_what_the_loader_refuses() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    for text in [
        "[]",
        "{}",
        "null",
        r#"{"allow_executables": null}"#,
        r#"{"allow_executables": "/bin/ls"}"#,
        r#"{"allow_executables": ["bin/ls"]}"#,
        r#"{"allow_executables": ["sha256:12"]}"#,
        r#"{"alow_executables": []}"#,
        r#"{"version": 2, "allow_executables": []}"#,
        r#"{"version": "1", "allow_executables": []}"#,
        r#"{"mode": "off", "allow_executables": []}"#,
        r#"{"default": "abstain", "allow_executables": []}"#,
        r#"{"lock_mode": 1, "allow_executables": []}"#,
        r#"{"require": ["speed"], "allow_executables": []}"#,
        r#"{"allow_executables": [], "audit": {"sinks": ["fd:2"]}}"#,
        r#"{"allow_executables": [], "audit": {"sinks": [{"to": "fd:0"}]}}"#,
        r#"{"plugins": []}"#,
        r#"{"plugins": [["allowlist"]]}"#,
        r#"{"plugins": [{"name": "allowlist"}]}"#,
        r#"{"plugins": [{"name": "allowlist", "config": {"users": {}}}], "network": {}}"#,
        r#"{"plugins": [{"name": "", "path": "a"}]}"#,
        r#"{"plugins": [{"name": "callgate", "path": "a"}]}"#,
        r#"{"plugins": [{"name": "other", "config": {"users": {}}}]}"#,
        r#"{"plugins": [{"name": "x", "builtin": "other", "config": {"users": {}}}]}"#,
        r#"{"plugins": [{"name": "x", "builtin": "allowlist", "path": "a", "config": {"users": {}}}]}"#,
        r#"{"plugins": [{"name": "allowlist", "sha256": "0000000000000000000000000000000000000000000000000000000000000000", "config": {"users": {}}}]}"#,
        r#"{"plugins": [{"name": "x", "path": "a", "sha256": "00"}]}"#,
        r#"{"plugins": [{"name": "allowlist", "config": {"users": {}}, "deadline_ms": 0}]}"#,
        r#"{"plugins": [{"name": "allowlist", "config": {"users": {}}, "deadline_ms": 60001}]}"#,
        r#"{"plugins": [{"name": "allowlist", "config": {"users": {}}, "memory_mib": 4097}]}"#,
        r#"{"plugins": [{"name": "allowlist", "config": {"users": {}}, "on_failure": "allow"}]}"#,
        r#"{"plugins": [{"name": "allowlist", "config": null}]}"#,
        r#"{"plugins": [{"name": "allowlist", "config": {}}]}"#,
        r#"{"plugins": [{"name": "allowlist", "config": {"usrs": {}}}]}"#,
        r#"{"network": []}"#,
        r#"{"network": {"outbound": [[]]}}"#,
        r#"{"network": {"outbound": {"to": "::"}}}"#,
        r#"{"network": {"outbound": [{"to": "10.0.0.0/33"}]}}"#,
        r#"{"network": {"outbound": [{"to": "::/129"}]}}"#,
        r#"{"network": {"outbound": [{"to": "localhost"}]}}"#,
        r#"{"network": {"outbound": [{"to": null}]}}"#,
        r#"{"network": {"outbound": [{"from": "::"}]}}"#,
        r#"{"network": {"outbound": [{"ports": 65536}]}}"#,
        r#"{"network": {"outbound": [{"ports": "80-"}]}}"#,
        r#"{"network": {"outbound": [{"ports": [80, -1]}]}}"#,
        r#"{"network": {"outbound": [{"protocol": "TCP"}]}}"#,
        r#"{"network": {"outbound": [{"unix": "run/x"}]}}"#,
        r#"{"network": {"outbound": [{"unix": "/x", "unix_abstract": "x"}]}}"#,
        r#"{"network": {"outbound": [{"unix": "/x", "ports": 1}]}}"#,
        r#"{"network": {"inbound": [{"unix_abstract": "x", "on": "::"}]}}"#,
        r#"{"network": {"families": ["inet"]}}"#,
        r#"{"users": {"uids": ["root"]}}"#,
        r#"{"users": {"uids": [4294967296]}}"#,
        r#"{"users": {"uids": 0}}"#,
        r#"{"allow_executables": [], "audit": {"sinks": ["stdout"]}}"#,
        r#"{"allow_executables": [], "audit": {"sinks": ["file:relative"]}}"#,
        r#"{"allow_executables": [], "audit": {"sinks": ["fd:x"]}}"#,
        r#"{"allow_executables": [], "audit": {"sinks": [{"to": "stdout"}]}}"#,
        r#"{"allow_executables": [], "audit": {"sinks": [{"to": "stderr", "format": "xml"}]}}"#,
        r#"{"allow_executables": [], "audit": {"queue": 0}}"#,
        r#"{"allow_executables": [], "audit": []}"#,
    ] {
        assert!(loads(text).is_err(), "the loader takes {text}");
        assert!(!validator.is_valid(&serde_json::from_str(text).unwrap()), "the schema takes {text}");
    }
}
