# An image with `distill` on the CPU, without a desktop and without root.
#   docker build -t distill .
#   docker run --rm --ipc=host --user "$(id -u):$(id -g)" -v "$PWD:/work" distill run half model=best.pt data=data.yaml
FROM python:3.12-slim

WORKDIR /src
# PyTorch first, from its own index: elsewhere its wheels bring the libraries of CUDA, several GB of them.
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu 'torch>=2.9' torchvision
COPY . .
# ultralytics asks for an OpenCV that needs the libraries of a desktop: the same release without windows goes over it.
RUN pip install --no-cache-dir '.[export]' \
    && pip install --no-cache-dir --no-deps \
        "opencv-python-headless==$(pip show opencv-python | sed -n 's/^Version: //p')" \
    && python -c 'import cv2' && distill --version

# Any user may run it: what libraries cache goes to a folder that everybody can write.
ENV HOME=/tmp
RUN useradd --no-create-home distill
USER distill
WORKDIR /work
ENTRYPOINT ["distill"]
CMD ["--help"]
