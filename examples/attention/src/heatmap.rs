//! A matrix as a picture.

use anyhow::{Result, ensure};
use std::path::Path;

/// Pixels that a picture should have at least, in each direction.
const SIDE: usize = 480;

/// Colours from none to all of the attention; between them they are mixed.
const COLOURS: [[f32; 3]; 5] = [
    [13.0, 8.0, 60.0],
    [100.0, 20.0, 125.0],
    [190.0, 55.0, 85.0],
    [245.0, 125.0, 20.0],
    [252.0, 250.0, 165.0],
];

/// Writes values between 0 and 1 as a PNG, one square per value, bright where the value is high.
pub fn save(path: &Path, values: &[f32], columns: usize) -> Result<()> {
    ensure!(
        columns > 0 && values.len().is_multiple_of(columns),
        "{} values in {columns} columns",
        values.len()
    );
    let rows = values.len() / columns;
    let cell = SIDE.div_ceil(rows.max(columns)).max(1);
    let (width, height) = (columns * cell, rows * cell);
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            pixels.extend(colour(values[y / cell * columns + x / cell]));
        }
    }
    orkest::write_file(path, |out| {
        let mut encoder = png::Encoder::new(out, width as u32, height as u32);
        encoder.set_color(png::ColorType::Rgb);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&pixels)?;
        Ok(writer.finish()?)
    })?;
    Ok(())
}

fn colour(value: f32) -> [u8; 3] {
    let place = value.clamp(0.0, 1.0) * (COLOURS.len() - 1) as f32;
    let i = (place as usize).min(COLOURS.len() - 2);
    let part = place - i as f32;
    std::array::from_fn(|c| (COLOURS[i][c] * (1.0 - part) + COLOURS[i + 1][c] * part).round() as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_a_square_of_its_colour() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map.png");
        save(&path, &[0.0, 1.0, 0.5, 0.25], 2).unwrap();
        let mut reader = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&path).unwrap()))
            .read_info()
            .unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), (480, 480));
        let at = |x: usize, y: usize| &pixels[(y * 480 + x) * 3..][..3];
        assert_eq!([at(0, 0), at(239, 239)], [[13, 8, 60]; 2]);
        assert_eq!([at(240, 0), at(0, 240), at(479, 479)], [[252, 250, 165], [190, 55, 85], [100, 20, 125]]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing temporary is left");
    }
}
