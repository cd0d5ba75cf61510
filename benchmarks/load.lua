-- Requests that benchmarks/load.py has prepared, sent in turns by wrk. The argument is a file with a line for each:
-- its content type, a tab, and the file that holds its body.
local requests, turn = {}, 0

function init(args)
   for line in io.lines(args[1]) do
      local kind, path = line:match("^([^\t]+)\t(.+)$")
      local file = assert(io.open(path, "rb"))
      requests[#requests + 1] = wrk.format("POST", nil, {["Content-Type"] = kind}, file:read("*a"))
      file:close()
   end
end

function request()
   turn = turn % #requests + 1
   return requests[turn]
end
