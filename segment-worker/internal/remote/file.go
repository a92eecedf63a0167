package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/pkg/sftp"

	"attentive.internal/pkg/fault"
)

// removeTimeout bounds the removal of a file whose upload failed.
const removeTimeout = 10 * time.Second

// errSource stands in for every error of a source. The library takes an error
// that wraps io.EOF for the clean end of the data.
var errSource = errors.New("the source failed")

// Put stores what r gives until io.EOF under name, replacing a file of that
// name, and returns the bytes stored: counted here and confirmed by the server
// after the file was closed. It does not close r. When ctx ends, r.Read must
// return; Put waits for it.
//
// When it fails and the connection still stands, the file is removed; after a lost
// connection or the end of ctx an incomplete file may be left. An error of r keeps
// its class. A folder that is missing or may not be written is Blocked
// (destination, folder_unusable), a server that takes no more bytes, or keeps fewer
// than it has confirmed, Blocked (destination, storage_full).
func (s *Session) Put(ctx context.Context, name string, r io.Reader) (int64, error) {
	what := fmt.Sprintf("put %q", name)
	var stored int64
	created := false
	err := s.exchange(ctx, what, func(w *watch) error {
		f, err := s.sftp.OpenFile(s.path(name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
		if errors.Is(err, os.ErrNotExist) {
			return s.folderMissing(what)
		}
		if err != nil {
			return err
		}
		created = true
		src := &source{r: r, watch: w}
		err = s.copy(f, src, what)
		stored = src.n
		return err
	})
	if err == nil {
		err = s.confirm(ctx, name, stored)
	}
	if err == nil {
		return stored, nil
	}
	if created {
		err = errors.Join(err, s.discard(ctx, name))
	}
	return 0, err
}

// copy sends src and closes f.
func (s *Session) copy(f *sftp.File, src *source, what string) error {
	_, err := f.ReadFromWithConcurrency(src, s.concurrent)
	src.watch.restart()
	// A deferred failure of the server's disk shows when the file is closed.
	closeErr := f.Close()
	switch {
	case errors.Is(err, errSource):
		class := fault.Of(src.err)
		return &fault.Error{
			Class: class.Class, Scope: class.Scope, Reason: class.Reason, Wait: class.Wait,
			Err: fmt.Errorf("sftp %s: %s: read what is to be sent: %w", s.cfg.Account(), what, src.err),
		}
	case err == nil:
		err = closeErr
	}
	// A file that was opened and whose bytes are refused: OpenSSH says no more
	// than "failure" for a full disk, a quota and a broken disk alike.
	if statusIs(err, uint32(sftp.ErrSSHFxFailure)) {
		return storageFull(s.cfg, what, err)
	}
	return err
}

// confirm compares the size on the server with what was sent.
func (s *Session) confirm(ctx context.Context, name string, sent int64) error {
	info, err := s.Stat(ctx, name)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("put %q", name)
	switch {
	case info.Size() < sent: // on a full disk ProFTPD confirms a packet of which it could write a part
		return storageFull(s.cfg, what, fmt.Errorf("it has confirmed %d bytes and keeps %d", sent, info.Size()))
	case info.Size() > sent:
		return s.classify(what, fmt.Errorf("the server has %d bytes, and was sent %d", info.Size(), sent))
	}
	return nil
}

// discard removes a file whose upload failed, if the session still can.
func (s *Session) discard(ctx context.Context, name string) error {
	if !s.Alive() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	return s.Remove(ctx, name)
}

// folderMissing is the answer of a server that knows no such folder.
func (s *Session) folderMissing(what string) error {
	return folderError(s.cfg, fault.FolderUnusable, "%s: %w; create the folder or correct the setting", what, fs.ErrNotExist)
}

// source is what Put reads: it counts, hides errors from the library, and lets
// the watch run only while the server is the one to wait for.
type source struct {
	r     io.Reader
	watch *watch
	n     int64
	err   error
}

// Read reads from the source; its only errors are io.EOF and errSource.
func (s *source) Read(p []byte) (int, error) {
	s.watch.stop()
	n, err := s.r.Read(p)
	s.watch.restart()
	s.n += int64(n)
	switch err {
	case nil, io.EOF: // compared, not unwrapped: a wrapped io.EOF is an error
		return n, err
	}
	s.err = err
	return n, errSource
}

// Rename gives a file its new name by SSH_FXP_RENAME, which on OpenSSH is atomic
// and does not overwrite; some servers do. When the new name is taken the error
// is fs.ErrExist, when the old one is missing fs.ErrNotExist, when the server
// cannot rename errors.ErrUnsupported. After that, and after a lost connection,
// the caller finds out by Stat what is there.
func (s *Session) Rename(ctx context.Context, from, to string) error {
	what := fmt.Sprintf("rename %q to %q", from, to)
	return s.exchange(ctx, what, func(*watch) error {
		err := s.sftp.Rename(s.path(from), s.path(to))
		if !statusIs(err, uint32(sftp.ErrSSHFxFailure), statusExists) {
			return err
		}
		// Version 3 of the protocol has no code for it.
		if _, statErr := s.sftp.Stat(s.path(to)); statErr == nil {
			return fs.ErrExist
		}
		return err
	})
}

// PosixRename gives a file its new name by posix-rename@openssh.com, which is
// atomic and replaces what has that name. A server that does not know it answers
// errors.ErrUnsupported. Otherwise its errors are those of Rename.
func (s *Session) PosixRename(ctx context.Context, from, to string) error {
	what := fmt.Sprintf("posix-rename %q to %q", from, to)
	return s.exchange(ctx, what, func(*watch) error { return s.sftp.PosixRename(s.path(from), s.path(to)) })
}

// Stat describes a file. One that does not exist is fs.ErrNotExist.
func (s *Session) Stat(ctx context.Context, name string) (info fs.FileInfo, err error) {
	err = s.exchange(ctx, fmt.Sprintf("stat %q", name), func(*watch) error {
		info, err = s.sftp.Stat(s.path(name))
		return err
	})
	return info, err
}

// List returns what is in the folder, in no order. A folder that does not exist
// is Blocked (destination, folder_unusable).
func (s *Session) List(ctx context.Context) (infos []fs.FileInfo, err error) {
	err = s.exchange(ctx, "list", func(*watch) error {
		infos, err = s.sftp.ReadDirContext(ctx, s.cfg.Folder)
		if errors.Is(err, os.ErrNotExist) {
			return s.folderMissing("list")
		}
		return err
	})
	return infos, err
}

// Remove removes a file; one that does not exist is removed already.
func (s *Session) Remove(ctx context.Context, name string) error {
	return s.exchange(ctx, fmt.Sprintf("remove %q", name), func(*watch) error {
		err := s.sftp.Remove(s.path(name))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	})
}
