//! From the interface's calls to a plugin's methods.

use crate::{Action, ConfigError, Event, Object, Plugin, Verdict};

/// Asks a plugin about an event: calls the method of its kind.
pub fn decide<P: Plugin>(plugin: &mut P, event: &Event) -> Verdict {
    match &event.action {
        Action::Exec(exec) => plugin.exec(event, exec),
        Action::ExecFileless(exec) => plugin.exec_fileless(event, exec),
        Action::Connect(to) => plugin.connect(event, to),
        Action::Bind(to) => plugin.bind(event, to),
        Action::Listen(on) => plugin.listen(event, on),
        Action::Accept(accepted) => plugin.accept(event, accepted),
        Action::Send(to) => plugin.send(event, to),
        Action::Socket(socket) => plugin.socket(event, socket),
        Action::Credentials(change) => plugin.credentials(event, change),
    }
}

/// Makes a plugin of its configuration, as JSON text.
///
/// # Errors
/// What is wrong with it, and where.
pub fn configure<P: Plugin>(config: &str) -> Result<P, ConfigError> {
    let Object(config) = callgate_json::from_str(config).map_err(|mistake| ConfigError {
        pointer: mistake.pointer,
        message: mistake.message,
        hint: mistake.hint,
    })?;
    P::new(config)
}

/// Before anything else of the plugin runs: a panic says its message and place before the trap that it ends in, and what the
/// logging crates are told goes to the host.
#[doc(hidden)]
pub fn start() {
    #[cfg(target_arch = "wasm32")]
    std::panic::set_hook(Box::new(|panic| crate::log(crate::Level::Error, &panic.to_string())));
    #[cfg(any(feature = "log", feature = "tracing"))]
    crate::logging::start();
}

/// Exports a type as the component's plugin: what the attribute ends in.
#[doc(hidden)]
#[macro_export]
macro_rules! __export {
    ($plugin:ty) => {
        #[allow(unsafe_code, missing_docs, clippy::undocumented_unsafe_blocks)]
        const _: () = {
            use std::cell::RefCell;
            use $crate::bindings::exports::callgate::policy::policy as interface;

            thread_local! {
                static PLUGIN: RefCell<Option<$plugin>> = const { RefCell::new(None) };
            }

            struct Exported;

            impl interface::Guest for Exported {
                fn describe() -> interface::Description {
                    interface::Description {
                        name: <$plugin as $crate::Plugin>::NAME.to_owned(),
                        version: <$plugin as $crate::Plugin>::VERSION.to_owned(),
                        config_schema: <$plugin as $crate::Plugin>::config_schema(),
                    }
                }

                fn configure(config: String) -> Result<$crate::EventKinds, $crate::ConfigError> {
                    $crate::start();
                    let plugin = $crate::configure::<$plugin>(&config)?;
                    let written = <$plugin as $crate::Plugin>::written_by_attribute();
                    let wanted = $crate::Plugin::subscriptions(&plugin, written);
                    PLUGIN.with_borrow_mut(|slot| *slot = Some(plugin));
                    Ok(wanted)
                }

                fn decide(event: $crate::Event) -> $crate::Verdict {
                    PLUGIN.with_borrow_mut(|slot| match slot {
                        Some(plugin) => $crate::decide(plugin, &event),
                        None => $crate::Verdict::Abstain,
                    })
                }
            }

    $crate::bindings::export_plugin!(Exported with_types_in $crate::bindings);
        };
    };
}
