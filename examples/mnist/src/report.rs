//! What a network got wrong: a confusion matrix, and a picture of the digits it misread.

use crate::data::{Pictures, SIZE};
use anyhow::Result;
use std::fmt::Write;
use std::path::Path;

/// How often each digit (row) was read as each digit (column), and the share that was right.
pub fn confusion_matrix(labels: &[i64], read: &[i64]) -> String {
    let mut counts = [[0usize; 10]; 10];
    for (&label, &digit) in labels.iter().zip(read) {
        counts[label as usize][digit as usize] += 1;
    }
    let mut text = String::from("digit | read as");
    for digit in 0..10 {
        _ = write!(text, "{digit:>5}");
    }
    text += "   right\n";
    for (digit, row) in counts.iter().enumerate() {
        _ = write!(text, "    {digit} |        ");
        for &count in row {
            let count = if count == 0 { ".".into() } else { count.to_string() };
            _ = write!(text, "{count:>5}");
        }
        let all: usize = row.iter().sum();
        match all {
            0 => text += "       -\n",
            _ => _ = writeln!(text, "{:>7.1}%", 100.0 * row[digit] as f64 / all as f64),
        }
    }
    text
}

/// Pictures in a row of the mosaic, and rows at most.
const ACROSS: usize = 12;
const DOWN: usize = 12;
/// Enlargement, and the sizes of a tile with its caption below.
const ZOOM: usize = 2;
const TILE: [usize; 2] = [SIZE * ZOOM + 4, SIZE * ZOOM + 18];

/// Writes the misread digits side by side as a PNG picture: below each, in green what it is, in red what it was taken for. The first
/// 144 if there are more; no file if there is none.
pub fn save_misread(pictures: &Pictures, read: &[i64], path: &Path) -> Result<usize> {
    let labels = pictures.labels.to_vec::<i64>()?;
    let misread: Vec<usize> = (0..labels.len()).filter(|&i| labels[i] != read[i]).collect();
    let shown = &misread[..misread.len().min(ACROSS * DOWN)];
    if shown.is_empty() {
        return Ok(0);
    }
    let rows = shown.len().div_ceil(ACROSS);
    let mut mosaic = Mosaic::new(ACROSS * TILE[0], rows * TILE[1]);
    for (n, &i) in shown.iter().enumerate() {
        let [x, y] = [n % ACROSS * TILE[0] + 2, n / ACROSS * TILE[1] + 2];
        let ink = pictures.ink.select(0, i as isize).to_vec::<u8>()?;
        for (pixel, &ink) in ink.iter().enumerate() {
            mosaic.square(x + pixel % SIZE * ZOOM, y + pixel / SIZE * ZOOM, [ink; 3]);
        }
        let below = y + SIZE * ZOOM + 3;
        mosaic.digit(x + 16, below, labels[i], [90, 220, 110]);
        mosaic.digit(x + 34, below, read[i], [240, 90, 80]);
    }
    mosaic.save(path)?;
    Ok(misread.len())
}

/// A picture in the making.
struct Mosaic {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Mosaic {
    fn new(width: usize, height: usize) -> Mosaic {
        Mosaic { width, height, pixels: vec![40; width * height * 3] }
    }

    /// A point, enlarged.
    fn square(&mut self, x: usize, y: usize, colour: [u8; 3]) {
        for (dx, dy) in (0..ZOOM * ZOOM).map(|i| (i % ZOOM, i / ZOOM)) {
            let at = ((y + dy) * self.width + x + dx) * 3;
            self.pixels[at..at + 3].copy_from_slice(&colour);
        }
    }

    /// A digit of 3 by 5 points.
    fn digit(&mut self, x: usize, y: usize, digit: i64, colour: [u8; 3]) {
        const FONT: [[u8; 5]; 10] = [
            [0b111, 0b101, 0b101, 0b101, 0b111],
            [0b010, 0b110, 0b010, 0b010, 0b111],
            [0b111, 0b001, 0b111, 0b100, 0b111],
            [0b111, 0b001, 0b111, 0b001, 0b111],
            [0b101, 0b101, 0b111, 0b001, 0b001],
            [0b111, 0b100, 0b111, 0b001, 0b111],
            [0b111, 0b100, 0b111, 0b101, 0b111],
            [0b111, 0b001, 0b010, 0b010, 0b010],
            [0b111, 0b101, 0b111, 0b101, 0b111],
            [0b111, 0b101, 0b111, 0b001, 0b111],
        ];
        for (row, bits) in FONT[digit as usize].iter().enumerate() {
            for column in (0..3).filter(|column| bits >> (2 - column) & 1 == 1) {
                self.square(x + column * ZOOM, y + row * ZOOM, colour);
            }
        }
    }

    fn save(&self, path: &Path) -> Result<()> {
        orkest::write_file(path, |out| {
            let mut encoder = png::Encoder::new(out, self.width as u32, self.height as u32);
            encoder.set_color(png::ColorType::Rgb);
            let mut writer = encoder.write_header()?;
            writer.write_image_data(&self.pixels)?;
            Ok(writer.finish()?)
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orkest::{DType, Device, Tensor};

    #[test]
    fn rows_are_digits_and_columns_what_they_were_taken_for() {
        let matrix = confusion_matrix(&[0, 0, 0, 0, 7], &[0, 0, 0, 8, 7]);
        let lines: Vec<&str> = matrix.lines().collect();
        assert_eq!(lines.len(), 11);
        assert_eq!(lines[1], "    0 |            3    .    .    .    .    .    .    .    1    .   75.0%");
        assert_eq!(lines[2], "    1 |            .    .    .    .    .    .    .    .    .    .       -");
        assert!(lines[8].ends_with("100.0%"));
        assert_eq!(lines[0].find('8'), Some(lines[1].rfind('1').unwrap()));
    }

    #[test]
    fn misread_digits_are_in_the_picture() {
        let cpu = Device::cpu();
        let ink = Tensor::full([3, SIZE, SIZE], 200, (DType::U8, &cpu));
        let pictures = Pictures { ink, labels: Tensor::new([1i64, 2, 3], &cpu) };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("misread.png");
        assert_eq!(save_misread(&pictures, &[1, 7, 3], &path).unwrap(), 1);
        let mut reader = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&path).unwrap()))
            .read_info()
            .unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width as usize, info.height as usize), (ACROSS * TILE[0], TILE[1]));
        assert_eq!(pixels.chunks(3).filter(|p| **p == [200; 3]).count(), SIZE * SIZE * ZOOM * ZOOM);
        assert!(
            pixels.chunks(3).any(|p| *p == [90, 220, 110]) && pixels.chunks(3).any(|p| *p == [240, 90, 80])
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left behind");
    }
}
