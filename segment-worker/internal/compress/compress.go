// Package compress packs what a file holds, as a stream.
//
// A gzip member has no name in it. Archives, zip and tar, hold one entry. Zip
// notes sizes behind the data, so it streams. Tar notes the size before the data,
// and nobody knows it before the last row: so the rows are spooled, encrypted, on
// the local disk, one file at a time, and what follows begins to flow only when
// the file is closed.
package compress

import (
	"archive/tar"
	"archive/zip"
	"errors"
	"io"
	"os"
	"time"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"

	"attentive.internal/pkg/config"
	"attentive.internal/pkg/spool"
)

// Suffix is what a compression adds to the name of a file.
func Suffix(c config.Compression) string {
	switch c {
	case config.Gzip:
		return ".gz"
	case config.Zip:
		return ".zip"
	case config.Tar:
		return ".tar"
	case config.TarGzip:
		return ".tgz"
	}
	return ""
}

// level of deflate: phone numbers do not get smaller by trying harder.
const level = flate.BestSpeed

// Entry names what an archive holds.
type Entry struct {
	Name string
	Time time.Time
}

// Writer packs what is written to it.
type Writer struct {
	to     io.Writer   // the innermost layer
	layers []io.Closer // the innermost first
	tar    *tarball    // nil unless it is an archive of that kind
}

// New returns a Writer to w, which it does not close. One of Close and Discard
// must be called.
func New(w io.Writer, c config.Compression, entry Entry) (*Writer, error) {
	switch c {
	case config.Gzip:
		z := newGzip(w)
		return &Writer{to: z, layers: []io.Closer{z}}, nil
	case config.Zip:
		return newZip(w, entry)
	case config.Tar:
		return newTar(w, entry)
	case config.TarGzip:
		z := newGzip(w)
		t, err := newTar(z, entry)
		if err != nil {
			return nil, err
		}
		t.layers = append(t.layers, z)
		return t, nil
	}
	return &Writer{to: w}, nil
}

func newGzip(w io.Writer) *gzip.Writer {
	z, _ := gzip.NewWriterLevel(w, level) // its only error is a level that does not exist
	return z
}

func newZip(w io.Writer, entry Entry) (*Writer, error) {
	archive := zip.NewWriter(w)
	archive.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) { return flate.NewWriter(w, level) })
	to, err := archive.CreateHeader(&zip.FileHeader{Name: entry.Name, Method: zip.Deflate, Modified: entry.Time})
	if err != nil {
		return nil, err
	}
	return &Writer{to: to, layers: []io.Closer{archive}}, nil
}

func newTar(w io.Writer, entry Entry) (*Writer, error) {
	rows, err := spool.New()
	if err != nil {
		return nil, err
	}
	t := &tarball{to: w, entry: entry, rows: rows}
	return &Writer{to: rows, layers: []io.Closer{t}, tar: t}, nil
}

// Write packs p.
func (w *Writer) Write(p []byte) (int, error) { return w.to.Write(p) }

// Close completes what was packed. After an error it is not complete.
func (w *Writer) Close() error {
	for _, layer := range w.layers {
		if err := layer.Close(); err != nil {
			return errors.Join(err, w.Discard())
		}
	}
	return nil
}

// Discard gives up what was packed, and what it keeps on the disk. After Close it
// does nothing.
func (w *Writer) Discard() error {
	if w.tar == nil {
		return nil
	}
	return w.tar.rows.Close()
}

// tarball writes an archive once all of its entry is there.
type tarball struct {
	to    io.Writer
	entry Entry
	rows  *spool.File
}

// Close writes the archive.
func (t *tarball) Close() (err error) {
	defer func() { err = errors.Join(err, t.rows.Close()) }()
	archive := tar.NewWriter(t.to)
	header := &tar.Header{Name: t.entry.Name, ModTime: t.entry.Time, Mode: int64(os.FileMode(0o644)), Size: t.rows.Size()}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	if _, err := t.rows.WriteTo(archive); err != nil {
		return err
	}
	return archive.Close()
}
