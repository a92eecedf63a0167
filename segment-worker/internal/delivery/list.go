package delivery

import (
	"context"
	"io"

	"golang.org/x/sync/errgroup"

	"attentive.internal/pkg/config"
	"attentive.internal/pkg/identifier"
	"attentive.internal/segment-worker/internal/audience"
)

// list is a segment on its way to the receiver.
type list struct {
	upload  *upload
	name    string
	segment *audience.Segment
	uploads errgroup.Group
	open    *remoteFile // begun and not closed; nil when there is none
	// finishing is closed, and perhaps not whole yet; nil when there is none.
	finishing *remoteFile
}

// list begins a segment. Its end must be called.
func (u *upload) list(ctx context.Context, t config.Template, name string) (*list, error) {
	settings := u.settings
	normalize := identifier.Email
	if settings.Identifier == config.Phone {
		phones, err := identifier.NewPhones(t.DefaultRegion)
		if err != nil {
			return nil, err
		}
		normalize = phones.Normalize
	}
	l := &list{upload: u, name: name}
	var err error
	l.segment, err = audience.New(audience.Config{
		Segment:    name,
		Column:     t.Columns.Of(settings.Identifier),
		Normalize:  normalize,
		Identifier: settings.Identifier,
		File:       settings.File,
		SplitRows:  uint64(settings.SplitRows),            //nolint:gosec // 1 to 500,000
		SplitBytes: uint64(settings.SplitMegabytes) * 1e6, //nolint:gosec // 0 to 4,096
		SampleRows: uint64(u.run.Job.GetSampleRows()),
		Memory:     u.memory,
		Disk:       u.Disk,
	}, func(part int) (io.WriteCloser, error) { return l.create(ctx, slot{name, part}) })
	if err != nil {
		return nil, err
	}
	u.order = append(u.order, name)
	return l, nil
}

// end completes the segment when its rows have come without an error, else it
// gives it up. It returns when no upload of it is running.
func (l *list) end(err error) error {
	if err == nil {
		err = l.segment.Close()
	}
	if releaseErr := l.segment.Release(); releaseErr != nil {
		l.upload.run.Log().Warn("a temporary file cannot be closed", "err", releaseErr)
	}
	if err != nil && l.open != nil {
		l.open.discard(err)
	}
	// Also after an error: what is whole is not uploaded again.
	if putErr := l.finishing.whole(); err == nil {
		err = putErr
	}
	if putErr := l.uploads.Wait(); err == nil {
		err = putErr
	}
	if err != nil {
		return err
	}
	u, c := l.upload, l.segment.Counts()
	u.rows[l.name] = c.Sent
	u.total.read += c.Read
	u.total.duplicate += c.Duplicates
	u.total.sent += c.Sent
	u.show(u.total.read)
	return nil
}
