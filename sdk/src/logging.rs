//! What a plugin says by the crates `log` and `tracing`, to the host's log. The host chooses what of it is shown.

/// Hands both crates over to [`crate::log`]. Where somebody else has done that already, as a test may, it stays so.
pub(crate) fn start() {
    #[cfg(feature = "log")]
    if log::set_logger(&by_log::HostLog).is_ok() {
        log::set_max_level(log::LevelFilter::Trace);
    }
    #[cfg(feature = "tracing")]
    let _ = tracing_core::dispatcher::set_global_default(tracing_core::Dispatch::new(by_tracing::HostLog));
}

#[cfg(feature = "log")]
mod by_log {
    use crate::Level;

    pub(super) struct HostLog;

    impl log::Log for HostLog {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &log::Record<'_>) {
            let level = match record.level() {
                log::Level::Error => Level::Error,
                log::Level::Warn => Level::Warn,
                log::Level::Info => Level::Info,
                log::Level::Debug => Level::Debug,
                log::Level::Trace => Level::Trace,
            };
            crate::log(level, &record.args().to_string());
        }

        fn flush(&self) {}
    }
}

#[cfg(feature = "tracing")]
mod by_tracing {
    use std::fmt::{self, Write};

    use tracing_core::field::{Field, Visit};
    use tracing_core::span::{Attributes, Id, Record};
    use tracing_core::{Event, Metadata, Subscriber};

    use crate::Level;

    /// Takes events. Spans are of no use to a plugin that runs for a microsecond, and are not.
    pub(super) struct HostLog;

    impl Subscriber for HostLog {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.is_event()
        }

        fn event(&self, event: &Event<'_>) {
            let level = match *event.metadata().level() {
                tracing_core::Level::ERROR => Level::Error,
                tracing_core::Level::WARN => Level::Warn,
                tracing_core::Level::INFO => Level::Info,
                tracing_core::Level::DEBUG => Level::Debug,
                tracing_core::Level::TRACE => Level::Trace,
            };
            let mut line = Line::default();
            event.record(&mut line);
            crate::log(level, (line.message + &line.fields).trim_start());
        }

        // Not called, since none is enabled; an id cannot be 0.
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    /// The message, and ` name=value` for every other field.
    #[derive(Default)]
    struct Line {
        message: String,
        fields: String,
    }

    impl Visit for Line {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            // Writing to a string cannot fail.
            let _ = match field.name() {
                "message" => write!(self.message, "{value:?}"),
                name => write!(self.fields, " {name}={value:?}"),
            };
        }
    }
}
