package delivery

import (
	"context"
	"fmt"
	"io"

	"attentive.internal/pkg/metrics"
	"attentive.internal/segment-worker/internal/compress"
	"attentive.internal/segment-worker/internal/stream"
)

// remoteFile is one file on its way: what is written is compressed and
// encrypted, and uploaded by a goroutine of its own. Close returns once the
// receiver has it whole.
type remoteFile struct {
	list   *list
	slot   slot
	name   string
	plain  *compress.Writer
	cipher io.WriteCloser // nil: it is not encrypted
	stream *stream.Writer
	sum    checksum // of what was written
	bytes  int64    // that the receiver has, once it has all
	put    chan putResult
}

type putResult struct {
	bytes int64
	err   error
}

// create begins a file, unless it lies there whole.
func (l *list) create(ctx context.Context, at slot) (io.WriteCloser, error) {
	u := l.upload
	switch {
	case u.direct != nil:
		return l.createFinal(ctx, at)
	case u.checking:
		return &checkedFile{upload: u, slot: at}, nil
	}
	if f, ok := u.whole[at]; ok {
		return &keptFile{ctx: ctx, upload: u, file: f}, nil
	}
	return l.begin(ctx, at, u.newName())
}

// begin starts the upload of a file.
func (l *list) begin(ctx context.Context, at slot, name string) (*remoteFile, error) {
	u := l.upload
	f := &remoteFile{list: l, slot: at, name: name, put: make(chan putResult, 1)}
	reader, writer := stream.New(ctx)
	f.stream = writer
	l.open = f
	l.uploads.Go(func() error {
		n, err := u.session.Put(ctx, f.name, reader)
		if err != nil {
			reader.CloseWithError(err)
		}
		f.put <- putResult{n, err}
		return err
	})
	return f, f.layer(writer)
}

// layer puts encryption and compression before what is uploaded.
func (f *remoteFile) layer(to io.Writer) (err error) {
	u := f.list.upload
	if u.recipients != nil {
		if u.Destination.Segment.PGP.Armor {
			f.cipher, err = u.recipients.EncryptArmored(to)
		} else {
			f.cipher, err = u.recipients.Encrypt(to)
		}
		if err != nil {
			return err
		}
		to = f.cipher
	}
	// An archive wants a name for what it holds. That of the file is not known yet,
	// and one that all files share would overwrite others when they are unpacked.
	f.plain, err = compress.New(to, u.settings.Compression, compress.Entry{
		Name: fmt.Sprintf("%s_subscriber_segment_%s_%d.csv", u.settings.ClientDomain, u.run.Job.GetId(), u.named),
		Time: u.Now(),
	})
	return err
}

func (f *remoteFile) Write(p []byte) (int, error) {
	f.sum.add(p)
	return f.plain.Write(p)
}

// Close ends compression, encryption and upload, in this order.
func (f *remoteFile) Close() error {
	if err := f.plain.Close(); err != nil {
		return err
	}
	if f.cipher != nil {
		if err := f.cipher.Close(); err != nil {
			return err
		}
	}
	if err := f.stream.Close(); err != nil {
		return err
	}
	put := <-f.put
	if put.err != nil {
		return put.err
	}
	u := f.list.upload
	f.list.open = nil
	f.bytes = put.bytes
	if u.direct == nil {
		u.files = append(u.files, file{slot: f.slot, Temporary: f.name, Bytes: put.bytes, Plain: f.sum})
	}
	u.Metrics.Bytes(u.Destination.ID, metrics.Plain).Add(float64(f.sum.Bytes))
	u.Metrics.Bytes(u.Destination.ID, metrics.Uploaded).Add(float64(put.bytes))
	return nil
}

// discard has the upload give up and remove its file.
func (f *remoteFile) discard(err error) {
	f.stream.CloseWithError(err)
	if f.plain != nil {
		_ = f.plain.Discard() // closes a file that has no name
	}
}
