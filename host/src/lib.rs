//! The enforcer as a library: what `callgate` and `callgatectl` are made of.
//!
//! Data flows one way: a notification from the kernel becomes an [`event::Event`] (`intercept`), the event a verdict
//! ([`decide`]), the verdict an outcome (`enforce`), and all of it a record ([`audit`]). Start reading at `launch`.

pub mod audit;
pub mod check;
pub mod control;
#[cfg(feature = "ctl")]
pub mod ctl;
pub mod decide;
pub mod enforce;
pub mod event;
pub mod guarantees;
pub mod intercept;
pub mod launch;
pub mod log;
pub mod plugin;
pub mod policy;
pub mod relay;
pub mod reload;
pub mod supervise;
pub mod sys;
pub mod trust;
pub mod wrap;
