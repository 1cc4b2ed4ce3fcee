//! Whose operation is running: its public name and the user's line, for what a device notices later than the call.
//!
//! A call to a backend happens on the thread of the user's call, so this is a note beside the stack, not one more argument.

use std::cell::Cell;
use std::fmt;
use std::panic::Location;

/// An operation as the program asked for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Caller {
    /// The public operation: `"embedding"` where the backend runs an index select.
    pub op: &'static str,
    /// The line of the program; within a gradient, the line of the operation whose gradient it is.
    pub at: &'static Location<'static>,
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}:{}", self.op, self.at.file(), self.at.line())
    }
}

thread_local! {
    static CALLER: Cell<Option<Caller>> = const { Cell::new(None) };
    static GRADIENT_OF: Cell<Option<&'static Location<'static>>> = const { Cell::new(None) };
}

/// The operation that this thread is running on a backend. `None` outside of [`Backend::execute`](crate::Backend::execute).
pub fn caller() -> Option<Caller> {
    CALLER.with(Cell::get)
}

/// While this lives, the thread runs `op`.
#[must_use]
pub(crate) struct Running(Option<Caller>);

impl Running {
    pub fn new(op: &'static str, at: &'static Location<'static>) -> Running {
        let at = GRADIENT_OF.with(Cell::get).unwrap_or(at);
        Running(CALLER.with(|c| c.replace(Some(Caller { op, at }))))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        CALLER.with(|c| c.set(self.0));
    }
}

/// While this lives, operations belong to the gradient of the one that was called at this line.
#[must_use]
pub(crate) struct GradientOf(Option<&'static Location<'static>>);

impl GradientOf {
    pub fn new(at: &'static Location<'static>) -> GradientOf {
        GradientOf(GRADIENT_OF.with(|g| g.replace(Some(at))))
    }
}

impl Drop for GradientOf {
    fn drop(&mut self) {
        GRADIENT_OF.with(|g| g.set(self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outer_call_comes_back_after_an_inner_one() {
        let here = Location::caller();
        assert_eq!(caller(), None);
        let outer = Running::new("outer", here);
        drop(Running::new("inner", here));
        assert_eq!(caller(), Some(Caller { op: "outer", at: here }));
        drop(outer);
        assert_eq!(caller(), None);
    }

    #[test]
    fn a_gradient_belongs_to_the_line_of_its_operation() {
        #[track_caller]
        fn line() -> &'static Location<'static> {
            Location::caller()
        }
        let (forward, rule) = (line(), Location::caller());
        let gradient = GradientOf::new(forward);
        let running = Running::new("mul", rule);
        assert_eq!(caller(), Some(Caller { op: "mul", at: forward }));
        drop((running, gradient));
        let _running = Running::new("mul", rule);
        assert_eq!(caller().map(|c| c.at), Some(rule));
    }
}
