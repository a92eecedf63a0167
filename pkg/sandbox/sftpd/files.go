package sftpd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
	"strings"
	"sync/atomic"

	"github.com/pkg/sftp"
)

// files answers the requests of one session.
type files struct {
	server *Server
	conn   net.Conn
}

// local turns a client's path, absolute and clean, into one below the root.
func local(name string) string {
	if name == "/" {
		return "."
	}
	return strings.TrimPrefix(name, "/")
}

// writable says whether a file of that path may be changed, and if not, why.
func (f *files) writable(name string) error {
	if path.Dir(name) == Uploads {
		return nil
	}
	if _, err := f.server.root.Stat(local(path.Dir(name))); err != nil {
		return err
	}
	return fmt.Errorf("%s: only files in %s can be changed: %w", name, Uploads, sftp.ErrSSHFxPermissionDenied)
}

// Fileread opens a file to read.
func (f *files) Fileread(r *sftp.Request) (io.ReaderAt, error) {
	return f.server.root.Open(local(r.Filepath))
}

// Filewrite opens a file to write.
func (f *files) Filewrite(r *sftp.Request) (io.WriterAt, error) {
	if err := f.writable(r.Filepath); err != nil {
		return nil, err
	}
	flags := os.O_WRONLY
	for flag, wanted := range map[int]bool{
		os.O_CREATE: r.Pflags().Creat, os.O_TRUNC: r.Pflags().Trunc, os.O_EXCL: r.Pflags().Excl,
	} {
		if wanted {
			flags |= flag
		}
	}
	file, err := f.server.root.OpenFile(local(r.Filepath), flags, 0o600)
	if err != nil {
		return nil, err
	}
	return &upload{File: file, files: f, name: path.Base(r.Filepath)}, nil
}

// upload is a file open for writing.
type upload struct {
	*os.File
	files  *files
	name   string
	broken atomic.Bool
}

// WriteAt writes as much as the misbehaviour lets it.
func (u *upload) WriteAt(p []byte, offset int64) (int, error) {
	allowed, cut, full := u.files.server.admit(len(p))
	n, err := u.File.WriteAt(p[:allowed], offset)
	switch {
	case err != nil:
		return n, err
	case cut:
		sever(u.files.conn)
		return n, sftp.ErrSSHFxConnectionLost
	}
	return n, full
}

// TransferError is told that the connection ended with the file still open.
func (u *upload) TransferError(error) { u.broken.Store(true) }

// Close ends an upload. A file whose client is gone has not arrived.
func (u *upload) Close() error {
	if err := u.File.Close(); err != nil || u.broken.Load() {
		return err
	}
	u.files.server.count(func(c *Stats) { c.Uploads++ })
	u.files.arrived(u.name)
	return nil
}

func (f *files) arrived(name string) {
	if f.server.cfg.Arrived != nil {
		f.server.cfg.Arrived(name)
	}
}

// Filecmd changes names and attributes.
func (f *files) Filecmd(r *sftp.Request) error {
	if err := f.writable(r.Filepath); err != nil {
		return err
	}
	switch r.Method {
	case "Setstat":
		return f.setstat(r)
	case "Rename":
		// A link is atomic and fails when the target exists; a rename would replace it.
		return f.rename(r, func(from, to string) error {
			if err := f.server.root.Link(from, to); err != nil {
				return err
			}
			return f.server.root.Remove(from)
		})
	case "Remove":
		err := f.server.root.Remove(local(r.Filepath))
		if err == nil {
			f.server.count(func(c *Stats) { c.Removed++ })
		}
		return err
	}
	return sftp.ErrSSHFxPermissionDenied // folders and links
}

// PosixRename renames and replaces.
func (f *files) PosixRename(r *sftp.Request) error {
	if f.server.Misbehaviour().NoPosixRename {
		return sftp.ErrSSHFxOpUnsupported
	}
	if err := f.writable(r.Filepath); err != nil {
		return err
	}
	return f.rename(r, f.server.root.Rename)
}

func (f *files) rename(r *sftp.Request, do func(from, to string) error) error {
	err := f.writable(r.Target)
	if err == nil && f.server.Misbehaviour().RefuseRename {
		err = sftp.ErrSSHFxPermissionDenied
	}
	if err == nil {
		err = do(local(r.Filepath), local(r.Target))
	}
	if err != nil {
		f.server.count(func(c *Stats) { c.RefusedRenames++ })
		return err
	}
	f.server.count(func(c *Stats) { c.Renames++ })
	f.arrived(path.Base(r.Target))
	return nil
}

// setstat takes a size; modes, owners and times are accepted and ignored.
func (f *files) setstat(r *sftp.Request) error {
	file, err := f.server.root.OpenFile(local(r.Filepath), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if r.AttrFlags().Size {
		err = file.Truncate(int64(r.Attributes().Size))
	}
	return errors.Join(err, file.Close())
}

// Filelist lists a folder or describes a file.
func (f *files) Filelist(r *sftp.Request) (sftp.ListerAt, error) {
	name := local(r.Filepath)
	switch r.Method {
	case "List":
		entries, err := fs.ReadDir(f.server.root.FS(), name)
		if err != nil {
			return nil, err
		}
		var infos listing
		for _, entry := range entries {
			if info, err := entry.Info(); err == nil { // else it was removed meanwhile
				infos = append(infos, info)
			}
		}
		return infos, nil
	case "Stat":
		info, err := f.server.root.Stat(name)
		return listing{info}, err
	}
	return nil, sftp.ErrSSHFxOpUnsupported
}

// listing is what a folder held when it was opened.
type listing []fs.FileInfo

// ListAt copies entries from an offset.
func (l listing) ListAt(infos []fs.FileInfo, offset int64) (int, error) {
	if offset >= int64(len(l)) {
		return 0, io.EOF
	}
	n := copy(infos, l[offset:])
	if n < len(infos) {
		return n, io.EOF
	}
	return n, nil
}
