package sftptest

import (
	"errors"
	"io"
	"os"
	"sync/atomic"
	"syscall"

	"github.com/pkg/sftp"
)

// files answers SFTP requests from the server's directory.
type files struct{ server *Server }

// Fileread opens a file for reading.
func (f *files) Fileread(r *sftp.Request) (io.ReaderAt, error) {
	if err := f.server.before(OpOpen, r.Filepath); err != nil {
		return nil, err
	}
	return os.Open(f.server.Path(r.Filepath))
}

// Filewrite opens a file for writing only; reading and writing at once is
// refused, as AWS Transfer does.
func (f *files) Filewrite(r *sftp.Request) (io.WriterAt, error) {
	if err := f.server.before(OpOpen, r.Filepath); err != nil {
		return nil, err
	}
	wanted := r.Pflags()
	if wanted.Read {
		return nil, sftp.ErrSSHFxPermissionDenied
	}
	flags := os.O_WRONLY
	if wanted.Creat {
		flags |= os.O_CREATE
	}
	if wanted.Trunc {
		flags |= os.O_TRUNC
	}
	if wanted.Excl {
		flags |= os.O_EXCL
	}
	file, err := os.OpenFile(f.server.Path(r.Filepath), flags, 0o600)
	if err := f.server.after(OpOpen, r.Filepath, err); err != nil {
		return nil, err
	}
	return &upload{File: file, server: f.server, name: r.Filepath}, nil
}

// Filecmd renames and removes.
func (f *files) Filecmd(r *sftp.Request) error {
	path := f.server.Path(r.Filepath)
	switch r.Method {
	case "Rename":
		if err := f.server.before(OpRename, r.Filepath); err != nil {
			return err
		}
		// As OpenSSH does it: a link fails when the name is taken.
		if err := os.Link(path, f.server.Path(r.Target)); err != nil {
			return err
		}
		return f.server.after(OpRename, r.Filepath, os.Remove(path))
	case "Remove":
		if err := f.server.before(OpRemove, r.Filepath); err != nil {
			return err
		}
		return f.server.after(OpRemove, r.Filepath, os.Remove(path))
	case "Mkdir":
		return os.Mkdir(path, 0o700)
	}
	return sftp.ErrSSHFxOpUnsupported
}

// Filelist lists a folder or describes a file.
func (f *files) Filelist(r *sftp.Request) (sftp.ListerAt, error) {
	path := f.server.Path(r.Filepath)
	switch r.Method {
	case "Stat":
		if err := f.server.before(OpStat, r.Filepath); err != nil {
			return nil, err
		}
		info, err := os.Stat(path)
		if err := f.server.after(OpStat, r.Filepath, err); err != nil {
			return nil, err
		}
		return listing{info}, nil
	case "List":
		if err := f.server.before(OpList, r.Filepath); err != nil {
			return nil, err
		}
		infos, err := list(path)
		return infos, f.server.after(OpList, r.Filepath, err)
	}
	return nil, sftp.ErrSSHFxOpUnsupported
}

// list reads a whole folder.
func list(path string) (listing, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var infos listing
	for _, entry := range entries {
		info, err := entry.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue // removed since
		}
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// listing is a folder's contents.
type listing []os.FileInfo

// ListAt copies entries from offset on.
func (l listing) ListAt(into []os.FileInfo, offset int64) (int, error) {
	if offset >= int64(len(l)) {
		return 0, io.EOF
	}
	n := copy(into, l[offset:])
	if n < len(into) {
		return n, io.EOF
	}
	return n, nil
}

// upload is a file being written.
type upload struct {
	*os.File
	server *Server
	name   string
}

// WriteAt stores p within the quota.
func (u *upload) WriteAt(p []byte, off int64) (int, error) {
	if err := u.server.before(OpWrite, u.name); err != nil {
		return 0, err
	}
	atLeast(&u.server.largestWrite, int64(len(p)))
	if !u.server.take(len(p)) {
		return 0, syscall.ENOSPC
	}
	n, err := u.File.WriteAt(p, off)
	return n, u.server.after(OpWrite, u.name, err)
}

// Close ends the upload.
func (u *upload) Close() error {
	err := errors.Join(u.server.before(OpClose, u.name), u.File.Close())
	return u.server.after(OpClose, u.name, err)
}

// atLeast raises v to n.
func atLeast(v *atomic.Int64, n int64) {
	for {
		old := v.Load()
		if old >= n || v.CompareAndSwap(old, n) {
			return
		}
	}
}
