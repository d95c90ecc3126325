//! The results of cases, for people and for those who collect results.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::json;

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object.
    Json,
    /// Test Anything Protocol, version 14.
    Tap,
    /// The XML of JUnit, which most services for continuous integration read.
    Junit,
}

/// What became of a case.
pub(super) struct Result {
    pub(super) name: String,
    /// What was not as expected; none if it passed.
    pub(super) failures: Vec<String>,
    pub(super) took: Duration,
}

pub(super) fn write(format: Format, plugin: &Path, results: &[Result], out: &mut dyn Write) -> io::Result<()> {
    let failed = results.iter().filter(|result| !result.failures.is_empty()).count();
    match format {
        Format::Text => text(results, failed, out),
        Format::Json => {
            let cases: Vec<_> = results
                .iter()
                .map(|it| {
                    let passed = it.failures.is_empty();
                    json!({ "name": it.name, "passed": passed, "failures": it.failures, "took_us": microseconds(it.took) })
                })
                .collect();
            let plugin = plugin.display().to_string();
            let all = json!({ "plugin": plugin, "passed": results.len() - failed, "failed": failed, "cases": cases });
            writeln!(out, "{all:#}")
        }
        Format::Tap => tap(results, out),
        Format::Junit => junit(plugin, results, failed, out),
    }
}

fn text(results: &[Result], failed: usize, out: &mut dyn Write) -> io::Result<()> {
    for result in results {
        let word = if result.failures.is_empty() { "ok    " } else { "FAILED" };
        writeln!(out, "{word} {}", one_line(&result.name))?;
        for failure in &result.failures {
            writeln!(out, "       {}", one_line(failure))?;
        }
    }
    writeln!(out, "{} passed, {failed} failed", results.len() - failed)
}

/// testanything.org/tap-version-14-specification.html
fn tap(results: &[Result], out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "TAP version 14\n1..{}", results.len())?;
    for (index, result) in results.iter().enumerate() {
        let word = if result.failures.is_empty() { "ok" } else { "not ok" };
        // In a description `#` begins a directive.
        let name = one_line(&result.name).replace('\\', r"\\").replace('#', r"\#");
        writeln!(out, "{word} {} - {name}", index + 1)?;
        if !result.failures.is_empty() {
            writeln!(out, "  ---\n  failures:")?;
            for failure in &result.failures {
                // A JSON string is one of YAML.
                writeln!(out, "    - {}", json!(failure))?;
            }
            writeln!(out, "  ...")?;
        }
    }
    Ok(())
}

fn junit(plugin: &Path, results: &[Result], failed: usize, out: &mut dyn Write) -> io::Result<()> {
    let suite = xml(&plugin.file_stem().unwrap_or_default().to_string_lossy());
    let all: Duration = results.iter().map(|result| result.took).sum();
    writeln!(out, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>")?;
    let tests = results.len();
    writeln!(
        out,
        "  <testsuite name=\"{suite}\" tests=\"{tests}\" failures=\"{failed}\" errors=\"0\" time=\"{:.6}\">",
        all.as_secs_f64()
    )?;
    for result in results {
        let (name, time) = (xml(&result.name), result.took.as_secs_f64());
        write!(out, "    <testcase classname=\"{suite}\" name=\"{name}\" time=\"{time:.6}\"")?;
        if result.failures.is_empty() {
            writeln!(out, "/>")?;
        } else {
            let (first, all) = (xml(&result.failures[0]), xml(&result.failures.join("\n")));
            writeln!(out, ">\n      <failure message=\"{first}\">{all}</failure>\n    </testcase>")?;
        }
    }
    writeln!(out, "  </testsuite>\n</testsuites>")
}

/// Text for XML 1.0, which has no place for most controls, not even escaped (2.2).
fn xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\n' => escaped.push_str("&#10;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

fn one_line(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

fn microseconds(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_does_not_break_the_format() {
        let result = Result {
            name: "a <b> \"c\" # d\n\u{1}".into(),
            failures: vec!["x\ny".into()],
            took: Duration::from_micros(5),
        };
        let written = |format| {
            let mut out = Vec::new();
            write(format, Path::new("p&q.wasm"), std::slice::from_ref(&result), &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert!(written(Format::Tap).contains("not ok 1 - a <b> \"c\" \\# d\\n\\u{1}\n"));
        let xml = written(Format::Junit);
        assert!(
            xml.contains("name=\"a &lt;b&gt; &quot;c&quot; # d&#10;\u{fffd}\"") && xml.contains("p&amp;q"),
            "{xml}"
        );
        assert!(written(Format::Text).ends_with("0 passed, 1 failed\n"));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&written(Format::Json)).unwrap()["failed"], 1);
    }
}
