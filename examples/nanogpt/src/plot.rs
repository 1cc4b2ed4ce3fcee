//! The loss curve as a PNG.

use anyhow::{Result, anyhow};
use font8x8::UnicodeFonts;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};
use plotters_backend::{BackendColor, BackendTextStyle, DrawingErrorKind};
use std::convert::Infallible;
use std::path::Path;

const WIDTH: u32 = 960;
const HEIGHT: u32 = 540;

/// Draws the losses of all steps, and the validation losses with the steps after which they were measured.
pub fn save(path: &Path, losses: &[f64], evaluations: &[(usize, f64)]) -> Result<()> {
    let mut pixels = vec![255; (WIDTH * HEIGHT * 3) as usize];
    draw(&mut pixels, losses, evaluations).map_err(|e| anyhow!("cannot draw the loss curve: {e}"))?;
    orkest::write_file(path, |out| {
        let mut encoder = png::Encoder::new(out, WIDTH, HEIGHT);
        encoder.set_color(png::ColorType::Rgb);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&pixels)?;
        Ok(writer.finish()?)
    })?;
    Ok(())
}

fn draw(
    pixels: &mut [u8],
    losses: &[f64],
    evaluations: &[(usize, f64)],
) -> Result<(), DrawingAreaErrorKind<Infallible>> {
    let root = Canvas { pixels }.into_drawing_area();
    let all = || losses.iter().copied().chain(evaluations.iter().map(|e| e.1));
    let (low, high) = all().fold((f64::INFINITY, 0.0), |(low, high), loss| (loss.min(low), loss.max(high)));
    let margin = 0.05 * (high - low).max(0.1);
    let mut chart = ChartBuilder::on(&root)
        .margin(16)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(0..losses.len().max(1), low - margin..high + margin)?;
    chart
        .configure_mesh()
        .x_labels(11)
        .y_labels(9)
        .x_label_formatter(&|step| step.to_string())
        .y_label_formatter(&|loss| format!("{loss:.2}"))
        .x_desc("step")
        .light_line_style(WHITE)
        .draw()?;
    let (training, validation) = (RGBColor(120, 165, 220), RGBColor(205, 60, 40));
    let curve =
        |colour: RGBColor| move |(x, y)| PathElement::new([(x, y), (x + 24, y)], colour.stroke_width(2));
    chart
        .draw_series(LineSeries::new(losses.iter().enumerate().map(|(i, &loss)| (i + 1, loss)), training))?
        .label("training loss")
        .legend(curve(training));
    if !evaluations.is_empty() {
        chart
            .draw_series(LineSeries::new(evaluations.iter().copied(), validation.stroke_width(2)))?
            .label("validation loss")
            .legend(curve(validation));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(BLACK)
        .legend_area_size(32)
        .label_font(("monospace", 16)) // of which the box believes that it is as wide as ours
        .draw()?;
    root.present()
}

/// Memory to draw into. Text is written with a font of 8 by 8 dots, so that no font has to be installed.
struct Canvas<'a> {
    pixels: &'a mut [u8],
}

const LETTER: i32 = 8;

impl DrawingBackend for Canvas<'_> {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        (WIDTH, HEIGHT)
    }

    fn ensure_prepared(&mut self) -> Result<(), DrawingErrorKind<Infallible>> {
        Ok(())
    }

    fn present(&mut self) -> Result<(), DrawingErrorKind<Infallible>> {
        Ok(())
    }

    fn draw_pixel(
        &mut self,
        (x, y): (i32, i32),
        color: BackendColor,
    ) -> Result<(), DrawingErrorKind<Infallible>> {
        if (0..WIDTH as i32).contains(&x) && (0..HEIGHT as i32).contains(&y) {
            let at = (y as usize * WIDTH as usize + x as usize) * 3;
            let (r, g, b) = color.rgb;
            for (old, new) in self.pixels[at..at + 3].iter_mut().zip([r, g, b]) {
                *old = (f64::from(*old) * (1.0 - color.alpha) + f64::from(new) * color.alpha).round() as u8;
            }
        }
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(
        &self,
        text: &str,
        _style: &S,
    ) -> Result<(u32, u32), DrawingErrorKind<Infallible>> {
        Ok(((text.chars().count() as i32 * LETTER) as u32, LETTER as u32))
    }

    fn draw_text<S: BackendTextStyle>(
        &mut self,
        text: &str,
        style: &S,
        (x, y): (i32, i32),
    ) -> Result<(), DrawingErrorKind<Infallible>> {
        let width = text.chars().count() as i32 * LETTER;
        let anchor = style.anchor();
        let left = x - match anchor.h_pos {
            HPos::Left => 0,
            HPos::Center => width / 2,
            HPos::Right => width,
        };
        let top = y - match anchor.v_pos {
            VPos::Top => 0,
            VPos::Center => LETTER / 2,
            VPos::Bottom => LETTER,
        };
        for (letter, left) in text.chars().zip((left..).step_by(LETTER as usize)) {
            let rows = font8x8::BASIC_FONTS.get(letter).unwrap_or_default();
            for (row, bits) in (top..).zip(rows) {
                for column in (0..LETTER).filter(|column| bits >> column & 1 == 1) {
                    self.draw_pixel((left + column, row), style.color())?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve_is_where_the_losses_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loss.png");
        let losses: Vec<f64> = (0..100).map(|i| 4.0 - 0.02 * f64::from(i)).collect();
        save(&path, &losses, &[(50, 3.2), (100, 2.2)]).unwrap();
        let mut reader = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&path).unwrap()))
            .read_info()
            .unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        let rows_of = |colour: [u8; 3], columns: std::ops::Range<usize>| -> Vec<usize> {
            let at = |x: usize, y: usize| (y * WIDTH as usize + x) * 3;
            let rows = 0..HEIGHT as usize;
            rows.filter(|&y| columns.clone().any(|x| pixels[at(x, y)..][..3] == colour)).collect()
        };
        // It falls from the upper left to the lower right.
        let (left, right) = (rows_of([120, 165, 220], 100..140), rows_of([120, 165, 220], 880..940));
        assert!(left[0] < 120 && right[right.len() - 1] > 420, "{left:?} {right:?}");
        assert!(!rows_of([205, 60, 40], 500..600).is_empty(), "there is a validation curve");
        assert!(!rows_of([0, 0, 0], 20..75).is_empty(), "the axis has labels");
    }
}
