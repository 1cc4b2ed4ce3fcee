//! Progress bars for loops.

use indicatif::{ProgressBar, ProgressStyle};

/// Shows how far a loop is, on standard error, and how long the rest will take. Nothing is shown where standard error is no
/// terminal, and the bar goes away when the loop ends.
///
/// ```
/// use orkest_data::progress;
/// let mut sum = 0;
/// for i in progress(0..100, "adding") {
///     sum += i;
/// }
/// assert_eq!(sum, 4950);
/// ```
pub fn progress<I: IntoIterator>(iter: I, label: impl Into<String>) -> Progress<I::IntoIter> {
    let iter = iter.into_iter();
    let (bar, template) = match iter.size_hint() {
        (_, Some(len)) => (ProgressBar::new(len as u64), "{msg} [{bar:40}] {pos}/{len} {per_sec} {eta}"),
        _ => (ProgressBar::new_spinner(), "{msg} {pos} {per_sec} {elapsed}"),
    };
    let style = ProgressStyle::with_template(template).map(|style| style.progress_chars("=> "));
    let bar = match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    };
    Progress { iter, bar: bar.with_message(label.into()), started: false }
}

/// What [`progress`] makes of an iterator.
pub struct Progress<I> {
    iter: I,
    bar: ProgressBar,
    /// The loop is at work on an item.
    started: bool,
}

impl<I: Iterator> Iterator for Progress<I> {
    type Item = I::Item;

    #[track_caller]
    fn next(&mut self) -> Option<I::Item> {
        if std::mem::take(&mut self.started) {
            self.bar.inc(1); // asking for the next item means that the last one is done
        }
        let item = self.iter.next();
        self.started = item.is_some();
        item
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.iter.size_hint()
    }
}

impl<I> Drop for Progress<I> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
