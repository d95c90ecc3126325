//! What callgate says about its own work, on standard error: `callgate: warning: …`. Records of events are the business of
//! [`crate::audit`].

use std::fmt;
use std::io::IsTerminal;

use anyhow::{Context, Result};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Begins to log. `filter` is a level (`warn`) or a filter in the syntax of `tracing-subscriber` (`warn,callgate=debug`).
///
/// # Errors
/// The filter is none.
pub fn start(filter: &str) -> Result<()> {
    let parsed = EnvFilter::try_new(filter)
        .with_context(|| format!("CALLGATE_LOG is {filter:?}; it takes error, warn, info, debug or trace"))?;
    let log = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(std::io::stderr);
    // Fields are coloured, whatever the format does; a container's log is no terminal.
    log.with_ansi(std::io::stderr().is_terminal()).event_format(Plain).init();
    Ok(())
}

struct Plain;

impl<S: Subscriber + for<'a> LookupSpan<'a>, N: for<'a> FormatFields<'a> + 'static> FormatEvent<S, N> for Plain {
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        write!(to, "callgate: {level}: ")?;
        context.format_fields(to.by_ref(), event)?;
        writeln!(to)
    }
}
