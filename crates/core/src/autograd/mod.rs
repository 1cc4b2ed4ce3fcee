//! Define-by-run differentiation.
//!
//! A recorded operation leaves a `Node` behind: what it needs for its gradient (the saved tensors), edges to the histories of
//! its inputs, and its rule. The graph is owned by the tensors; there is no tape. `engine` walks it.

mod checkpoint;
mod custom;
mod engine;
mod gradcheck;
mod hooks;
mod mode;
mod node;
mod param;

pub use checkpoint::checkpoint;
pub use custom::Function;
pub(crate) use engine::grad_from;
pub use engine::{BackwardOptions, grad};
pub use gradcheck::{Outputs, gradcheck, gradgradcheck};
pub use hooks::{HookHandle, Hooks, joint_hook};
pub use mode::{GradMode, detect_anomaly, enable_grad, is_grad_enabled, no_grad};
pub use node::{Context, Gradients, Rule};
pub(crate) use node::{History, Leaf, Node, Save, record, records};
pub use param::Param;
